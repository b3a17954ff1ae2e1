"""From a request to a list: each stage has something simpler to fall back on, so there is always an answer."""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headwater.clock import Clock
from headwater.errors import DataError, UnavailableError
from headwater.online.reader import Matrix
from serving.contracts import MAX_LIMIT, Ranked, RankedItem, Request
from serving.impressions import Impression, ImpressionSink
from serving.ports import Availability, Bundle, Features, Floats, Ints, State, UserState
from serving.reasons import Reasons
from serving.rerank import mmr
from serving.sources import Candidates, absent, blend
from serving.surfaces import DEFAULT, FeatureNames, Surface
from serving.telemetry import Telemetry

MAX_IDS = 10_000
MAX_TEXT = 512
_T = TypeVar("_T")


@dataclass
class Trace:
    """One request's way through the stages."""

    telemetry: Telemetry
    degraded: list[str] = field(default_factory=list)
    store_is_down: bool = False

    def attempt(self, stage: str, work: Callable[[], _T], otherwise: Callable[[], _T]) -> _T:
        """Do the stage's work, or if that fails in any way what is simpler."""
        try:
            with self.telemetry.stage(stage):
                return work()
        except Exception as error:
            self.store_is_down |= isinstance(error, UnavailableError)
            self.give_up(stage, error)
            return otherwise()

    def give_up(self, stage: str, error: Exception | None = None) -> None:
        """Name a stage that was replaced."""
        self.degraded.append(stage)
        self.telemetry.degraded(stage, error)


@dataclass(frozen=True)
class Funnel:
    """One bundle on one online store."""

    bundle: Bundle
    surfaces: Mapping[str, Surface]
    names: FeatureNames
    state: State
    features: Features
    availability: Availability
    reasons: Reasons
    impressions: ImpressionSink
    clock: Clock
    telemetry: Telemetry

    @property
    def version(self) -> str:
        return self.bundle.version

    def recommend(self, request: Request) -> Ranked:
        """Return the user's list, best first, at most ``request.limit`` items."""
        trace = Trace(self.telemetry)
        surface = self.surfaces[request.surface]
        user = self._know(request, trace)
        candidates = self._retrieve(request, surface, user, trace)  # (n_candidates,)
        eligible = self._filter(request, surface, user, candidates, trace)  # (n_eligible,)
        features = self._hydrate(request, eligible, trace)  # float32 (n_eligible, n_features)
        scores = self._rank(request, eligible, features, trace)  # float32 (n_eligible,)
        shown = self._rerank(request, surface, eligible, scores, trace)  # rows of eligible, best first
        chances = self._calibrate(request, scores, features, trace)  # float32 (n_eligible,)
        ranked = self._reply(eligible, features, chances, shown, trace)
        self._log(request, ranked, eligible, features, chances, shown)
        return ranked

    def rank_all(self, user_ids: Iterable[str], limit: int, surface: str = DEFAULT) -> dict[str, Ranked]:
        """Return every user's list at the clock's instant."""
        return {user_id: self.recommend(self.request(user_id, surface, limit)) for user_id in user_ids}

    def proposed_by(self, source: str, user_id: str, n: int) -> list[str]:
        """Item ids that one source alone proposes to a user, best first, at most n."""
        items = self.bundle.sources[source].propose(self.state.read(user_id), n)
        return [str(self.bundle.catalogue.ids[item]) for item in items]

    def similar(self, item_id: str, limit: int = 10, exclude: Sequence[str] = ()) -> Ranked:
        """Return an item's nearest neighbours; the score is the cosine."""
        item = self._item(item_id)
        _bounded("limit", limit, 1, MAX_LIMIT)
        catalogue, trace = self.bundle.catalogue, Trace(self.telemetry)
        hidden = trace.attempt("availability", self.availability.unavailable, lambda: np.empty(0, np.int32))
        unwanted = np.concatenate([[item], catalogue.dense(exclude), hidden]).astype(np.int32)
        vector = catalogue.vectors[item][None, :]
        near = self.bundle.index.search(vector, limit + len(unwanted))[0]
        near = near[(near >= 0) & absent(near, unwanted)][:limit]
        likeness = (catalogue.vectors[near] @ vector[0]).astype(np.float32)
        items = [
            RankedItem(
                str(catalogue.ids[near_item]), float(score), position, ("similar",), (), catalogue.attributes(near_item)
            )
            for position, (near_item, score) in enumerate(zip(near.tolist(), likeness, strict=True), start=1)
        ]
        return Ranked(_request_id(), items, tuple(trace.degraded), self.version)

    def request(
        self,
        user_id: str,
        surface: str = "",
        limit: int = 0,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        context: Mapping[str, str] | None = None,
    ) -> Request:
        """Validate a call; what is empty takes its default."""
        name = surface or DEFAULT
        if name not in self.surfaces:
            raise DataError(f"surface: {name[:80]!r} is unknown. Choose from {', '.join(self.surfaces)}.")
        if not user_id:
            raise DataError("user_id: empty. Name who is asking.")
        _bounded("user_id's length", len(user_id), 1, MAX_TEXT)
        _bounded("limit", limit, 0, MAX_LIMIT)
        _bounded("exclude_item_ids' number", len(exclude), 0, MAX_IDS)
        _bounded("include_item_ids' number", len(include), 0, MAX_LIMIT)
        wanted = limit or self.surfaces[name].limit
        return Request(user_id, name, wanted, frozenset(exclude), tuple(include), dict(context or {}))

    def _know(self, request: Request, trace: Trace) -> UserState:
        return trace.attempt(
            "user_state", lambda: self.state.read(request.user_id), lambda: self.state.unknown(request.user_id)
        )

    def _retrieve(self, request: Request, surface: Surface, user: UserState, trace: Trace) -> Candidates:
        proposals = {
            name: trace.attempt(f"source.{name}", self._proposal(name, user, n), lambda: np.empty(0, np.int32))
            for name, n in surface.sources.items()
        }
        candidates = blend(proposals)
        return self._only(request.include, candidates) if request.include else candidates

    def _proposal(self, name: str, user: UserState, n: int) -> Callable[[], Ints]:
        return lambda: self.bundle.sources[name].propose(user, n)

    def _only(self, include: Sequence[str], candidates: Candidates) -> Candidates:
        """Keep the items asked for, with the sources that would have proposed them too."""
        asked = self.bundle.catalogue.dense(list(dict.fromkeys(include)))
        asked = asked[asked >= 0]
        both = blend(
            {name: candidates.items[candidates.proposed[:, at]] for at, name in enumerate(candidates.names)}
            | {"include": asked}
        )
        return both.take(np.flatnonzero(both.proposed[:, -1]))

    def _filter(
        self, request: Request, surface: Surface, user: UserState, candidates: Candidates, trace: Trace
    ) -> Candidates:
        unavailable = trace.attempt("availability", self.availability.unavailable, lambda: np.empty(0, np.int32))
        excluded = self.bundle.catalogue.dense(sorted(request.exclude))
        seen = user.seen if surface.seen == "hide" else excluded
        eligible = candidates.take(absent(candidates.items, unavailable, excluded, seen))
        missing = request.limit - len(eligible)
        if missing <= 0 or request.include:
            return eligible
        spare = self.bundle.popular
        spare = spare[absent(spare, unavailable, excluded, seen, eligible.items)][:missing]
        return _extended(eligible, spare)

    def _hydrate(self, request: Request, eligible: Candidates, trace: Trace) -> Matrix | None:
        if not len(eligible):
            return None
        if trace.store_is_down:  # it is not asked again while the user waits
            trace.give_up("hydrate")
            return None
        catalogue, n = self.bundle.catalogue, len(eligible)
        entities = {
            self.names.user: [request.user_id] * n,
            self.names.item: catalogue.ids[eligible.items].tolist(),
            **{key: catalogue.column(name)[eligible.items].tolist() for key, name in self.names.attributes.items()},
        }
        matrix = trace.attempt("hydrate", lambda: self.features.read_matrix(self.names.ranker, entities), lambda: None)
        if matrix is not None:
            self.telemetry.features(matrix.views)
        return matrix

    def _rank(self, request: Request, eligible: Candidates, features: Matrix | None, trace: Trace) -> Floats:
        if features is None:
            return eligible.fused
        ranker = self.bundle.weighed.get(request.surface, self.bundle.ranker)
        return trace.attempt("rank", lambda: ranker.score(features.values), lambda: eligible.fused)

    def _rerank(
        self, request: Request, surface: Surface, eligible: Candidates, scores: Floats, trace: Trace
    ) -> NDArray[np.intp]:
        vectors = self.bundle.catalogue.vectors
        return trace.attempt(
            "rerank",
            lambda: mmr(scores, vectors[eligible.items], request.limit, surface.diversity),
            lambda: np.argsort(-scores, kind="stable")[: request.limit],
        )

    def _calibrate(self, request: Request, scores: Floats, features: Matrix | None, trace: Trace) -> Floats:
        if features is None or "rank" in trace.degraded:
            return scores  # not the ranker's
        if request.surface in self.bundle.weighed:
            return scores  # worths already
        return trace.attempt("calibrate", lambda: self.bundle.calibrate(scores), lambda: scores)

    def _reply(
        self,
        eligible: Candidates,
        features: Matrix | None,
        scores: Floats,
        shown: NDArray[np.intp],
        trace: Trace,
    ) -> Ranked:
        items = []
        for position, row in enumerate(shown.tolist(), start=1):
            item, sources = int(eligible.items[row]), eligible.of(row)
            attributes = self.bundle.catalogue.attributes(item)
            values = None if features is None else features.values[row]
            reasons = trace.attempt("reasons", self._because(values, sources, attributes), lambda: ())
            items.append(
                RankedItem(
                    str(self.bundle.catalogue.ids[item]), float(scores[row]), position, sources, reasons, attributes
                )
            )
        return Ranked(_request_id(), items, tuple(dict.fromkeys(trace.degraded)), self.version)

    def _because(
        self, values: Floats | None, sources: tuple[str, ...], attributes: Mapping[str, str]
    ) -> Callable[[], tuple[str, ...]]:
        return lambda: self.reasons.of(values, sources, attributes)

    def _log(
        self,
        request: Request,
        ranked: Ranked,
        eligible: Candidates,
        features: Matrix | None,
        scores: Floats,
        shown: NDArray[np.intp],
    ) -> None:
        at_ms = self.clock.now_ms() if features is None else features.now
        self.impressions.log(
            Impression(
                at_ms,
                request,
                ranked,
                self.names.ranker,
                self.bundle.schema_hash,
                self.bundle.catalogue.ids[eligible.items].tolist(),
                eligible,
                scores,
                shown,
                features,
            )
        )

    def _item(self, item_id: str) -> int:
        item = int(self.bundle.catalogue.dense([item_id])[0])
        if item < 0:
            raise DataError(f"item_id: {item_id[:80]!r} is not in bundle {self.version}. Ask for one of its items.")
        return item


def _extended(candidates: Candidates, spare: Ints) -> Candidates:
    """Add items that no source proposed, as popular ones, behind the others."""
    width, extra = len(candidates.names), len(spare)
    return Candidates(
        np.concatenate([candidates.items, spare]),
        np.vstack(
            [
                np.hstack([candidates.proposed, np.zeros((len(candidates), 1), bool)]),
                np.hstack([np.zeros((extra, width), bool), np.ones((extra, 1), bool)]),
            ]
        ),
        np.concatenate([candidates.fused, np.zeros(extra, np.float32)]),
        (*candidates.names, "fill"),
    )


def _bounded(field_name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DataError(f"{field_name}: {value} is not from {low} to {high}. Ask for less.")


def _request_id() -> str:
    return uuid.uuid4().hex
