"""A small typed client: strings and plain objects, errors of :mod:`headwater.errors`."""

# mypy: allow-untyped-calls
# (grpc generates its stubs without types)

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from headwater.errors import DataError, HeadwaterError, ModelError, UnavailableError
from headwater.events import Event
from serving.contracts import Explanation, Moved, Ranked, RankedItem
from serving.proto.headwater.v1 import (
    event_pb2,
    event_pb2_grpc,
    feature_pb2,
    feature_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
)

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Features:
    """Values by name in the service's order, the instant they hold at (epoch ms), whether any view was found."""

    values: Mapping[str, float | list[Any] | None]
    at: int
    found: bool


class Client:
    """One channel to one server; use it as a context manager.

    Every method raises :class:`DataError` for a request that is refused, :class:`ModelError` where nothing can answer
    yet, :class:`UnavailableError` where a part or the server itself is down.
    """

    def __init__(self, address: str, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._recommendations = recommendation_pb2_grpc.RecommendationServiceStub(self._channel)
        self._events = event_pb2_grpc.EventServiceStub(self._channel)
        self._features = feature_pb2_grpc.FeatureServiceStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the channel."""
        self._channel.close()

    def recommend(
        self,
        user_id: str,
        surface: str = "",
        limit: int = 0,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        context: Mapping[str, str] | None = None,
    ) -> Ranked:
        """Return the user's list, best first."""
        return _ranked(self._call(self._recommendations.Recommend, recommendation_pb2.RecommendRequest(
            user_id=user_id, surface=surface, limit=limit, exclude_item_ids=exclude, include_item_ids=include,
            context=context or {},
        )))  # fmt: skip

    def search(
        self,
        user_id: str,
        query: str,
        limit: int = 0,
        exclude: Sequence[str] = (),
        require: Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Ranked:
        """Return what matches a text, of the items that have the required attributes."""
        try:
            request = recommendation_pb2.SearchRequest(
                user_id=user_id, query=query, limit=limit, exclude_item_ids=exclude, require=require or {},
                context=context or {},
            )  # fmt: skip
        except UnicodeEncodeError as error:
            raise DataError(f"search: {error.object[:80]!r} is not text, {error.reason}. Leave them out.") from None
        return _ranked(self._call(self._recommendations.Search, request))

    def similar(self, item_id: str, limit: int = 10) -> Ranked:
        """Return the item's neighbours, nearest first."""
        request = recommendation_pb2.SimilarRequest(item_id=item_id, limit=limit)
        return _ranked(self._call(self._recommendations.Similar, request))

    def explain(self, user_id: str, item_id: str, surface: str = "", limit: int = 0) -> Explanation:
        """Why an item is in the user's list now, or why not."""
        reply = self._call(self._recommendations.Explain, recommendation_pb2.ExplainRequest(
            user_id=user_id, item_id=item_id, surface=surface, limit=limit
        ))  # fmt: skip
        moved = tuple(
            Moved(one.name, one.value if one.HasField("value") else math.nan, one.contribution)
            for one in reply.features
        )  # fmt: skip
        return Explanation(item_id, reply.stage, reply.position, tuple(reply.lines), moved)

    def track(self, event: Event) -> int:
        """Send one event and return its ingest time, epoch ms; safe to repeat with the same ``event_id``."""
        return int(self._call(self._events.Track, event_pb2.TrackRequest(event=message_of(event))).ingest_time)

    def track_many(self, events: Iterable[Event]) -> tuple[int, list[str]]:
        """Stream events; how many were taken, and why the first hundred of the others were not."""
        requests = (event_pb2.TrackRequest(event=message_of(event)) for event in events)
        reply = self._call(self._events.TrackStream, requests)
        return reply.accepted, [f"{refusal.index}: {refusal.reason}, {refusal.detail}" for refusal in reply.refusals]

    def features(
        self,
        service: str,
        entities: Mapping[str, str],
        at: int | None = None,
        request: Mapping[str, float] | None = None,
    ) -> Features:
        """Return the features of one entity or combination of entities."""
        reply = self._call(self._features.GetFeatures, feature_pb2.GetFeaturesRequest(
            service=service, entities=entities, at=at, request=request or {}
        ))  # fmt: skip
        return Features({feature.name: _value(feature) for feature in reply.features}, reply.at, reply.found)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._told(error) from None

    def _told(self, error: Any) -> HeadwaterError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return DataError(details)
        if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
            return ModelError(details)
        if code is grpc.StatusCode.INTERNAL:
            return HeadwaterError(details)
        if "headwater" in details:  # the server's own words
            return UnavailableError(details)
        return UnavailableError(
            f"server at {self._address}: {code.name.lower()}, {details[:160] or 'no details'}. "
            "Start it with headwater up or headwater serve."
        )


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
