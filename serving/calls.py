"""What a client asks and how a reply is read, whichever way it is sent: one function a method of the services."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from headwater.errors import DataError
from headwater.events import Event
from serving.contracts import Explanation, Moved, Ranked, RankedItem
from serving.proto.headwater.v1 import event_pb2, feature_pb2, recommendation_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A method's name, its message, or messages, and what the reply means."""

    method: str
    request: Any
    read: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Features:
    """Values by name in the service's order, the instant they hold at (epoch ms), whether any view was found."""

    values: Mapping[str, float | list[Any] | None]
    at: int
    found: bool


def recommend(
    user_id: str,
    surface: str = "",
    limit: int = 0,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    context: Mapping[str, str] | None = None,
) -> Call[Ranked]:
    """Return the user's list, best first."""
    request = recommendation_pb2.RecommendRequest(
        user_id=user_id, surface=surface, limit=limit, exclude_item_ids=exclude, include_item_ids=include,
        context=context or {},
    )  # fmt: skip
    return Call("Recommend", request, _ranked)


def search(
    user_id: str,
    query: str,
    limit: int = 0,
    exclude: Sequence[str] = (),
    require: Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
) -> Call[Ranked]:
    """Return what matches a text, of the items that have the required attributes."""
    try:
        request = recommendation_pb2.SearchRequest(
            user_id=user_id, query=query, limit=limit, exclude_item_ids=exclude, require=require or {},
            context=context or {},
        )  # fmt: skip
    except UnicodeEncodeError as error:
        raise DataError(f"search: {error.object[:80]!r} is not text, {error.reason}. Leave them out.") from None
    return Call("Search", request, _ranked)


def similar(item_id: str, limit: int = 10) -> Call[Ranked]:
    """Return the item's neighbours, nearest first."""
    return Call("Similar", recommendation_pb2.SimilarRequest(item_id=item_id, limit=limit), _ranked)


def explain(
    user_id: str,
    item_id: str,
    surface: str = "",
    limit: int = 0,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    context: Mapping[str, str] | None = None,
) -> Call[Explanation]:
    """Why an item is in the user's list now, or why not; the list is asked for as from :func:`recommend`."""

    def read(reply: Any) -> Explanation:
        moved = tuple(
            Moved(one.name, one.value if one.HasField("value") else math.nan, one.contribution)
            for one in reply.features
        )  # fmt: skip
        return Explanation(item_id, reply.stage, reply.position, tuple(reply.lines), moved)

    request = recommendation_pb2.ExplainRequest(
        user_id=user_id, item_id=item_id, surface=surface, limit=limit, exclude_item_ids=exclude,
        include_item_ids=include, context=context or {},
    )  # fmt: skip
    return Call("Explain", request, read)


def track(event: Event) -> Call[int]:
    """Send one event and return its ingest time, epoch ms; safe to repeat with the same ``event_id``."""
    return Call("Track", event_pb2.TrackRequest(event=message_of(event)), lambda reply: int(reply.ingest_time))


def track_many(events: Iterable[Event]) -> Call[tuple[int, list[str]]]:
    """Stream events; how many were taken, and why the first hundred of the others were not."""

    def read(reply: Any) -> tuple[int, list[str]]:
        return reply.accepted, [f"{refusal.index}: {refusal.reason}, {refusal.detail}" for refusal in reply.refusals]

    return Call("TrackStream", (event_pb2.TrackRequest(event=message_of(event)) for event in events), read)


def features(
    service: str,
    entities: Mapping[str, str],
    at: int | None = None,
    request: Mapping[str, float] | None = None,
) -> Call[Features]:
    """Return the features of one entity or combination of entities."""

    def read(reply: Any) -> Features:
        return Features({feature.name: _value(feature) for feature in reply.features}, reply.at, reply.found)

    asked = feature_pb2.GetFeaturesRequest(service=service, entities=entities, at=at, request=request or {})
    return Call("GetFeatures", asked, read)


def message_of(event: Event) -> Any:
    """Protobuf of an event."""
    optional = ("item_id", "session_id", "request_id", "position", "value")
    given = {name: getattr(event, name) for name in optional if getattr(event, name) is not None}
    return event_pb2.Event(
        event_id=event.event_id, event_type=event.event_type, event_time=event.event_time, user_id=event.user_id,
        context=event.context, **given,
    )  # fmt: skip


def _ranked(reply: Any) -> Ranked:
    items = [
        RankedItem(
            item.item_id, item.score, item.position, tuple(item.sources), tuple(item.reasons), dict(item.attributes)
        )
        for item in reply.items
    ]
    return Ranked(reply.request_id, items, tuple(reply.degraded), reply.bundle_version, reply.variant)


def _value(feature: Any) -> float | list[Any] | None:
    kind = feature.WhichOneof("value")
    if kind is None:
        return None
    if kind == "number":
        return float(feature.number)
    return [entry.text if entry.WhichOneof("value") == "text" else entry.number for entry in feature.list.entries]
