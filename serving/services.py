"""The three gRPC services: protobuf in, protobuf out, errors raised and mapped elsewhere."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from headwater.errors import DataError, HeadwaterError, UnavailableError
from headwater.events import BadRecord
from serving.contracts import Ranked, Recommender, Request
from serving.features import FeatureLookup, Value
from serving.live import Live
from serving.proto.headwater.v1 import (
    event_pb2,
    event_pb2_grpc,
    feature_pb2,
    feature_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
)
from serving.tracking import Taken, Tracker
from serving.turns import Calls

MAX_REFUSALS = 100
_IN_FLIGHT = 1000
_WAY_BACK = 0.1
"""Share of a call's time that is kept for the reply's way to the caller."""
_NOT_AGAIN = (("grpc-retry-pushback-ms", "-1"),)
"""Tells the client's gRPC that the log has been tried for seconds already, so that the caller hears of it."""


class RecommendationService(recommendation_pb2_grpc.RecommendationServiceServicer):
    """Lists from whatever bundle is live."""

    def __init__(self, live: Live, calls: Calls) -> None:
        self._live = live
        self._calls = calls

    def Recommend(self, request: Any, context: Any) -> Any:
        """The user's list; where too many calls wait, one without time for its stages, which takes a tenth as long."""
        recommender = self._live.of(request.user_id)
        asked = _asked(recommender, request)
        hurried = self._calls.too_many
        ranked = recommender.recommend(asked, 0.0 if hurried else _patience(context))
        return reply_of(ranked, self._live.now.behind, hurried)

    def Similar(self, request: Any, context: Any) -> Any:
        ranked = self._live.recommender.similar(request.item_id, request.limit or 10, request.exclude_item_ids)
        return reply_of(ranked)

    def Search(self, request: Any, context: Any) -> Any:
        ranked = self._live.of(request.user_id).search(
            request.user_id, request.query, request.limit, request.exclude_item_ids, request.require, request.context,
            _patience(context),
        )  # fmt: skip
        return reply_of(ranked, self._live.now.behind)

    def Explain(self, request: Any, context: Any) -> Any:
        recommender = self._live.of(request.user_id)
        asked = _asked(recommender, request)
        found = recommender.explain(asked, request.item_id)
        effects = [
            recommendation_pb2.FeatureEffect(
                name=one.name, value=None if math.isnan(one.value) else one.value, contribution=one.contribution
            )
            for one in found.moved
        ]
        return recommendation_pb2.ExplainReply(
            lines=found.lines, stage=found.stage, position=found.position, features=effects
        )


class EventService(event_pb2_grpc.EventServiceServicer):
    """Events into the log."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def Track(self, request: Any, context: Any) -> Any:
        if not request.HasField("event"):
            raise DataError("event: missing. Pass the event to track.")
        taken = self._tracker.take(request.event)
        try:
            taken.settle()
        except UnavailableError:
            context.set_trailing_metadata(_NOT_AGAIN)
            raise
        return event_pb2.TrackReply(event_id=taken.event.event_id, ingest_time=taken.ingest_ms)

    def TrackStream(self, request_iterator: Any, context: Any) -> Any:
        reply = event_pb2.TrackStreamReply()
        pending: list[Taken] = []
        for index, outcome in enumerate(self._tracker.take_all(request.event for request in request_iterator)):
            if isinstance(outcome, BadRecord):
                reply.refused += 1
                if len(reply.refusals) < MAX_REFUSALS:
                    reply.refusals.add(index=index, reason=outcome.reason, detail=outcome.detail)
                continue
            pending.append(outcome)
            reply.accepted += 1
            if len(pending) >= _IN_FLIGHT:
                _await(pending)
        _await(pending)
        return reply


class FeatureService(feature_pb2_grpc.FeatureServiceServicer):
    """Values as a model would be served them."""

    def __init__(self, lookup: Callable[[], FeatureLookup]) -> None:
        self._lookup = lookup

    def GetFeatures(self, request: Any, context: Any) -> Any:
        at = request.at if request.HasField("at") else None
        found = self._lookup().read(request.service, dict(request.entities), at, dict(request.request))
        return feature_pb2.GetFeaturesReply(
            features=[_feature(name, value) for name, value in found.features.items()],
            at=found.at, found=found.found, missing_views=found.missing_views,
        )  # fmt: skip


def reply_of(ranked: Ranked, behind: bool = False, hurried: bool = False) -> Any:
    """Protobuf of a reply; ``behind``: an earlier bundle stands in for the champion; ``hurried``: too many waited."""
    reply = recommendation_pb2.RecommendReply(
        request_id=ranked.request_id,
        degraded=ranked.degraded,
        bundle_version=ranked.bundle_version,
        variant=ranked.variant,
    )
    if behind:
        reply.degraded.append("bundle")
    if hurried:
        reply.degraded.append("overload")
    for item in ranked.items:  # filled in place: making each message and copying it in took 1.7 times as long
        attributes = reply.items.add(
            item_id=item.item_id, score=item.score, position=item.position, sources=item.sources, reasons=item.reasons
        ).attributes
        for name, text in item.attributes.items():  # one by one, as its ``update`` is written in Python
            attributes[name] = text
    return reply


def _asked(recommender: Recommender, request: Any) -> Request:
    """What a list is asked for with, by a request for it or for why it is as it is."""
    return recommender.request(
        request.user_id, request.surface, request.limit, request.exclude_item_ids, request.include_item_ids,
        request.context,
    )  # fmt: skip


def _patience(context: Any) -> float:
    """Seconds that the caller waits for the answer to be on its way."""
    left = context.time_remaining()
    return math.inf if left is None else float(left) * (1 - _WAY_BACK)


def _feature(name: str, value: Value) -> Any:
    if isinstance(value, list):
        return feature_pb2.Feature(name=name, list=feature_pb2.FeatureList(entries=list(_entries(value))))
    return feature_pb2.Feature(name=name) if value is None else feature_pb2.Feature(name=name, number=value)


def _entries(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, str):
            yield feature_pb2.FeatureEntry(text=value)
        else:
            yield feature_pb2.FeatureEntry(number=value)


def _await(pending: list[Taken]) -> None:
    """Wait until the log has them all; the first failure is raised."""
    failures: list[HeadwaterError] = []
    for taken in pending:
        try:
            taken.settle()
        except HeadwaterError as error:
            failures.append(error)
    pending.clear()
    if failures:
        raise failures[0]
