"""From a request to a list: each stage has something simpler to fall back on, so there is always an answer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from headwater.clock import Clock
from headwater.errors import DataError, UnavailableError
from headwater.online.reader import Matrix
from models.variants import CHAMPION
from serving.asking import asked, bounded, sought
from serving.contracts import MAX_LIMIT, Explanation, Ranked, RankedItem, Request
from serving.explain import explain
from serving.filters import Filters, among, marked
from serving.guard import Deadline, Guard
from serving.impressions import Impression, ImpressionSink, seed_of
from serving.ports import Availability, Bundle, Features, Floats, Ints, Sought, Source, State, UserState
from serving.reasons import Reasons
from serving.rerank import Arranged, OfItems, arrange
from serving.rulebook import RuleBook, Ruled
from serving.run import Run, Trace
from serving.shadow import Shadow
from serving.showings import NOTHING_SHOWN, Nowhere, Showings, left_lying
from serving.sources import Candidates, absent, blend, drawing_chances
from serving.surfaces import DEFAULT, FeatureNames, Served, Surface
from serving.telemetry import Telemetry
from serving.told import told
from serving.tuning import Tuned
from serving.turns import Turns

PINNED = "pinned"
NO_MATCH = "search.no_match"
SIMILAR_S = 0.1


@dataclass(frozen=True)
class Funnel:
    """One bundle on one online store."""

    bundle: Bundle
    surfaces: Mapping[str, Surface]
    names: FeatureNames
    state: State
    features: Features
    availability: Availability
    rules: RuleBook
    reasons: Reasons
    impressions: ImpressionSink
    clock: Clock
    telemetry: Telemetry
    store: Guard = field(default_factory=lambda: Guard("online store"))
    showings: Showings = field(default_factory=Nowhere)
    variant: str = CHAMPION
    experiment: str = ""
    standing: tuple[str, ...] = ()
    """Named as degraded in every reply."""
    shadow: Shadow | None = None
    turns: Turns = field(default_factory=Turns)
    trained: object = None
    """What the bundle was made of: kept, so that items that come are added to it in memory."""
    guards: Mapping[str, Guard] = field(init=False)
    """Of the sources that may wait."""

    def __post_init__(self) -> None:
        guards = {name: Guard(f"source {name}") for name, source in self.bundle.sources.items() if source.waits}
        object.__setattr__(self, "guards", guards)

    @property
    def version(self) -> str:
        return self.bundle.version

    def tuned(self, how: Tuned) -> "Funnel":
        """The same bundle with other settings.

        Raises
        ------
        ConfigError
            They name a source that the bundle does not have.
        """
        how.require(self.bundle)
        return replace(
            self,
            bundle=replace(self.bundle, weighed=self.bundle.weigh(how.weights)),
            surfaces=how.surfaces.surfaces,
            reasons=replace(self.reasons, rules=how.surfaces.reasons, by_source=how.surfaces.source_reasons),
            variant=how.variant,
            experiment=how.experiment,
            standing=how.degraded,
            shadow=how.shadow,
        )

    def score(self, surface: str, features: Floats) -> Floats:
        """Probabilities or worths of candidates (n,) from their features (n, n_features)."""
        if (weighed := self.bundle.weighed.get(surface)) is not None:
            return weighed.score(features)
        return self.bundle.calibrate(self.bundle.ranker.score(features))

    def recommend(self, request: Request, wait_s: float | None = None) -> Ranked:
        """Return the user's list, best first, at most ``request.limit`` items."""
        budget_s = self.surfaces[request.surface].deadline_ms / 1000
        deadline = None if wait_s is None else Deadline.after(min(wait_s, budget_s))
        with self.turns.turn(deadline):
            run = self.run(request, deadline)
            self._log(run)
        return run.ranked

    def run(self, request: Request, deadline: Deadline | None = None) -> Run:
        """Make the list; nothing is logged as shown."""
        trace = Trace(self.telemetry, deadline, degraded=[*self.standing])
        surface, now_ms = self.surfaces[request.surface], self.clock.now_ms()
        search = None if request.query is None else self.bundle.search.sought(request.query, request.require)
        sources = self.bundle.sources if search is None else search.sources
        with self.telemetry.stage("rules"):
            ruled = self.rules.now()
        user = self._know(request, surface, trace)
        user = told(user, request, self.bundle.catalogue, now_ms, seed_of(f"{trace.request_id} draw"))
        pins = ruled.pins(request.surface, now_ms)
        quotas = surface.quotas(newcomer=not len(user.own))
        proposals = self._asked_for(request) or self._propose(sources, quotas, user, pins, trace)
        candidates = blend(proposals, surface.weights, drawing_chances(sources, quotas))  # (n_candidates,)
        filters = self._filters(request, surface, user, ruled, now_ms, trace)
        filters = filters if search is None else filters.within(search.allowed)
        removed = filters.removed_by(candidates.items)  # int16 (n_candidates,)
        eligible = self._eligible(request, candidates, filters, removed, trace)  # (n_eligible,)
        item_ids = self.bundle.catalogue.ids.take(eligible.items)  # (n_eligible,)
        features = self._hydrate(request, user, eligible, item_ids, trace)  # float32 (n_eligible, n_features)
        scores = self._rank(request, eligible, features, trace)  # float32 (n_eligible,)
        ordered = ruled.shift(eligible.items, scores, request.surface, now_ms)  # float32 (n_eligible,)
        ordered = ordered if search is None else self._match(search, eligible, features, ordered, trace)
        shown = self._rerank(request, surface, eligible, ordered, pins, trace)  # rows of eligible, best first
        chances = self._calibrate(request, scores, features, trace)  # float32 (n_eligible,)
        ranked = self._reply(eligible, item_ids, features, chances, shown.rows, trace)
        return Run(
            request, user, proposals, candidates, filters, removed, eligible, item_ids, features, scores, chances,
            shown, ranked,
        )  # fmt: skip

    def search(
        self,
        user_id: str,
        query: str,
        limit: int = 0,
        exclude: Sequence[str] = (),
        require: Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
        wait_s: float | None = None,
    ) -> Ranked:
        """Return what matches a text: more of its words first, then as the ranker has it for the user.

        Where nothing that may be shown matches, it is what is popular, and ``degraded`` has ``search.no_match``.
        """
        request = sought(self.surfaces, user_id, query, limit, exclude, require or {}, context or {})
        return self.recommend(request, wait_s)

    def explain(self, request: Request, item_id: str) -> Explanation:
        """Why an item is in the user's list now, or why not.

        Raises
        ------
        DataError
            The item is unknown.
        """
        item = self._item(item_id)
        return explain(self.run(request), self.bundle, self.surfaces[request.surface], item)

    def rank_all(self, user_ids: Iterable[str], limit: int, surface: str = DEFAULT) -> dict[str, Ranked]:
        """Return every user's list at the clock's instant."""
        return {user_id: self.recommend(self.request(user_id, surface, limit)) for user_id in user_ids}

    def proposed_by(self, source: str, user_id: str, n: int) -> list[str]:
        """Item ids that one source alone proposes to a user, best first, at most n."""
        items = self.bundle.sources[source].propose(self.state.read(user_id), n)
        return self.bundle.catalogue.ids.take(items)

    def similar(self, item_id: str, limit: int = 10, exclude: Sequence[str] = ()) -> Ranked:
        """Return an item's nearest neighbours; the score is the cosine."""
        item = self._item(item_id)
        bounded("limit", limit, 1, MAX_LIMIT)
        catalogue, trace = self.bundle.catalogue, Trace(self.telemetry)
        hidden = self.availability.unavailable(Deadline.after(SIMILAR_S))
        unwanted = np.concatenate([[item], catalogue.dense(exclude), hidden]).astype(np.int32)
        vector = catalogue.vectors[item][None, :]
        near = self.bundle.index.search(vector, limit + len(unwanted))[0]
        near = near[(near >= 0) & absent(near, unwanted)][:limit]
        likeness = (catalogue.vectors[near] @ vector[0]).astype(np.float32)
        told = zip(catalogue.ids.take(near), likeness.tolist(), count(1), catalogue.attributes(near), strict=False)
        items = [
            RankedItem(near_id, score, position, ("similar",), (), attributes)
            for near_id, score, position, attributes in told
        ]
        return Ranked(trace.request_id, items, tuple(trace.degraded), self.version, variant="")

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
        return asked(self.surfaces, user_id, surface, limit, exclude, include, context or {})

    def _know(self, request: Request, surface: Surface, trace: Trace) -> UserState:
        if (request.include or request.query is not None) and surface.seen == "keep":  # nothing depends on it
            return self.state.unknown(request.user_id)
        return trace.attempt(
            "user_state",
            lambda: self.state.read(request.user_id),
            lambda: self.state.unknown(request.user_id),
            self.store,
            here=True,
        )

    def _asked_for(self, request: Request) -> Mapping[str, Ints]:
        """The items to rank, where they are given: no source is asked then."""
        if not request.include:
            return {}
        items = self.bundle.catalogue.dense(list(dict.fromkeys(request.include)))
        return {"include": items[items >= 0]}

    def _propose(
        self, sources: Mapping[str, Source], quotas: Mapping[str, int], user: UserState, pins: Mapping[int, Ints],
        trace: Trace,
    ) -> Mapping[str, Ints]:  # fmt: skip
        """Ask those that may wait first, so that they work while the others are asked."""
        asked = {name: _proposal(sources[name], user, n) for name, n in quotas.items()}
        deadline = trace.deadline
        if deadline is not None and deadline.left():
            waiting = [name for name in asked if name in self.guards]
            asked |= {name: _started(self.guards[name], asked[name], deadline) for name in waiting}
        proposals = {
            name: trace.attempt(f"source.{name}", propose, lambda: np.empty(0, np.int32))
            for name, propose in asked.items()
        }
        return {**proposals, PINNED: np.unique(np.concatenate([*pins.values()]))} if pins else proposals

    def _filters(
        self, request: Request, surface: Surface, user: UserState, ruled: Ruled, now_ms: int, trace: Trace
    ) -> Filters:
        catalogue = self.bundle.catalogue
        with self.telemetry.stage("availability"):
            unavailable = self.availability.unavailable(trace.deadline)
        found = {"unavailable": among(unavailable), "excluded": among(catalogue.dense(sorted(request.exclude)))}
        if surface.seen == "hide":
            found["seen"] = among(user.seen)
        if len(user.about):
            found["about"] = among(user.about)
        if surface.served is not None:
            found["served"] = among(self._left_lying(surface.served, user, trace))
        return Filters(
            found | {name: marked(barred) for name, barred in ruled.removals(request.surface, now_ms).items()}
        )

    def _left_lying(self, served: Served, user: UserState, trace: Trace) -> Ints:
        shown = trace.attempt(
            "served",
            lambda: self.showings.since(user.user_id, user.now_ms - served.window_ms),
            lambda: NOTHING_SHOWN,
            self.store,
        )
        return left_lying(shown, served, user, self.bundle.catalogue)

    def _eligible(
        self, request: Request, candidates: Candidates, filters: Filters, removed: NDArray[np.int16], trace: Trace
    ) -> Candidates:
        """What no filter removed; popular items fill up what is too short, a search only where it found nothing."""
        self.telemetry.removed(filters.names(), removed)
        eligible = candidates.take(removed < 0)
        missing = request.limit - len(eligible)
        if missing <= 0 or request.include:
            return eligible
        if request.query is not None:
            if eligible.proposed[:, [name != PINNED for name in eligible.names]].any():
                return eligible
            trace.degraded.append(NO_MATCH)
        popular = self.bundle.popular
        spare = filters.first(popular, missing + len(eligible))
        return _extended(eligible, spare[absent(spare, eligible.items)][:missing])

    def _hydrate(
        self, request: Request, user: UserState, eligible: Candidates, item_ids: Sequence[str], trace: Trace
    ) -> Matrix | None:
        if not len(eligible):
            return None
        catalogue, n = self.bundle.catalogue, len(eligible)
        entities = {
            self.names.user: [request.user_id] * n,
            self.names.item: item_ids,
            **{key: catalogue.column(name).take(eligible.items) for key, name in self.names.attributes.items()},
        }
        matrix = trace.attempt(
            "hydrate",
            lambda: self.features.read_matrix(self.names.ranker, entities, items=eligible.items, held=user.held),
            lambda: None,
            self.store,
            here=True,
        )
        if matrix is not None:
            self.telemetry.features(matrix.views)
        return matrix

    def _rank(self, request: Request, eligible: Candidates, features: Matrix | None, trace: Trace) -> Floats:
        if features is None:
            return eligible.fused
        ranker = self.bundle.weighed.get(request.surface, self.bundle.ranker)
        return trace.attempt("rank", lambda: ranker.score(features.values), lambda: eligible.fused)

    def _match(
        self, search: Sought, eligible: Candidates, features: Matrix | None, scores: Floats, trace: Trace
    ) -> Floats:
        """More of the query's words first, then the ranker's order; without the ranker the fused ranks alone count."""
        if features is None or "rank" in trace.degraded:
            return scores
        return trace.attempt("search.order", lambda: search.by_words(eligible.items, scores), lambda: scores)

    def _rerank(
        self, request: Request, surface: Surface, eligible: Candidates, scores: Floats, pins: Mapping[int, Ints],
        trace: Trace,
    ) -> Arranged:  # fmt: skip
        pinned = _pinned(pins, eligible.items, request.limit)
        return trace.attempt(
            "rerank",
            lambda: self._arrange(request, surface, eligible, scores, pinned, seed_of(trace.request_id)),
            lambda: _by_score(scores, request.limit),
        )

    def _arrange(
        self, request: Request, surface: Surface, eligible: Candidates, scores: Floats, pinned: Mapping[int, int],
        seed: int,
    ) -> Arranged:  # fmt: skip
        free = absent(np.arange(len(eligible)), [*pinned.values()]).nonzero()[0]
        catalogue, items = self.bundle.catalogue, eligible.items[free]
        groups = np.array([catalogue.groups(name)[items] for name in surface.caps], np.int32)
        caps = groups.reshape(len(surface.caps), len(items)), np.array([*surface.caps.values()], np.int32)
        found = arrange(
            scores[free], OfItems(catalogue.vectors, items), request.limit - len(pinned), method=surface.method,
            diversity=surface.diversity, window=surface.window, caps=caps, exploring=surface.explore, seed=seed,
            may_explore=eligible.of_any(surface.explore.among)[free] if surface.explore.among else None,
        )  # fmt: skip
        return found.at(free).with_pinned(pinned)

    def _calibrate(self, request: Request, scores: Floats, features: Matrix | None, trace: Trace) -> Floats:
        if features is None or "rank" in trace.degraded:
            return scores  # not the ranker's
        if request.surface in self.bundle.weighed:
            return scores  # worths already
        return trace.attempt("calibrate", lambda: self.bundle.calibrate(scores), lambda: scores)

    def _reply(
        self,
        eligible: Candidates,
        item_ids: Sequence[str],
        features: Matrix | None,
        scores: Floats,
        shown: NDArray[np.intp],
        trace: Trace,
    ) -> Ranked:
        rows = shown.tolist()
        values = None if features is None else features.values[shown]
        sources = eligible.of(shown)
        attributes = self.bundle.catalogue.attributes(eligible.items[shown])
        none: list[tuple[str, ...]] = [()] * len(rows)
        reasons = trace.attempt("reasons", lambda: self.reasons.of(values, sources, attributes), lambda: none)
        ids = [item_ids[row] for row in rows]
        told = zip(ids, scores[shown].tolist(), count(1), sources, reasons, attributes, strict=False)
        items = [*map(RankedItem._make, told)]
        return Ranked(trace.request_id, items, tuple(dict.fromkeys(trace.degraded)), self.version, self.variant)

    def _log(self, run: Run) -> None:
        if self.surfaces[run.request.surface].served is not None:
            windows = [one.served.window_ms for one in self.surfaces.values() if one.served is not None]
            shown = [item.item_id for item in run.ranked.items]
            self.showings.note(run.request.user_id, run.ranked.request_id, shown, run.user.now_ms, max(windows))
        at_ms = self.clock.now_ms() if run.features is None else run.features.now
        surface = run.request.surface
        self.telemetry.listed(surface, self.variant, run.chances)
        shade = None
        if self.shadow is not None and run.features is not None:
            shade = self.shadow.ask(surface, run.features.values)
        self.impressions.log(
            Impression(
                at_ms, run.request, run.ranked, self.names.ranker, self.bundle.schema_hash, run.item_ids, run.eligible,
                run.chances, run.shown, run.features, self.experiment, shade,
            )
        )  # fmt: skip

    def _item(self, item_id: str) -> int:
        item = int(self.bundle.catalogue.dense([item_id])[0])
        if item < 0:
            raise DataError(f"item_id: {item_id[:80]!r} is not in bundle {self.version}. Ask for one of its items.")
        return item


def _proposal(source: Source, user: UserState, n: int) -> Callable[[], Ints]:
    return lambda: source.propose(user, n)


def _started(guard: Guard, work: Callable[[], Ints], deadline: Deadline) -> Callable[[], Ints]:
    """Begin the work; its result, or that the part is not asked, comes when it is asked for."""
    try:
        call = guard.start(work)
    except UnavailableError as error:
        return partial(_raise, error)
    return lambda: call.result(deadline)


def _raise(error: Exception) -> NoReturn:
    raise error


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
        candidates.chances,
    )


def _pinned(pins: Mapping[int, Ints], items: Ints, limit: int) -> dict[int, int]:
    """Rows of ``items`` by the place that is theirs: the first item named for it that may be shown."""
    found: dict[int, int] = {}
    for position, wanted in sorted(pins.items()):
        rows = [int(row) for item in wanted for row in np.flatnonzero(items == item) if row not in found.values()]
        if rows and position <= limit:
            found[position] = rows[0]
    return found


def _by_score(scores: Floats, limit: int) -> Arranged:
    rows = np.argsort(-scores, kind="stable")[:limit]
    return Arranged(rows, np.ones(len(rows)))
