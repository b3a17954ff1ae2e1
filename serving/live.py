"""What the server answers with now, swapped whole while it answers: the plan, and each variant's funnel.

At most two bundles are in memory: the champion's, and beside it the challenger's while users see it, else the shadow's.
Before a third is read the second is let go, and its users get the champion meanwhile.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from headwater.errors import ConfigError, HeadwaterError, ModelError
from headwater.log import get_logger
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan, registry_sha256
from headwater.settings import Settings
from models.variants import ALONE, CHALLENGER, Experiment
from serving import aliases
from serving.contracts import Recommender
from serving.shadow import Shadow
from serving.telemetry import Telemetry
from serving.tuning import Stamps, Tuned, Tuning, read_tuning, stamps

log = get_logger("serving")
POLL_S = 1.0
RETRY_S = 5.0
MOST_BUNDLES = 2


@dataclass(frozen=True, slots=True)
class Loaded:
    """One consistent state; a request keeps the one it started with.

    ``why`` says what is missing; ``behind``, that the champion cannot be loaded and an earlier one answers.
    ``recommender`` is the control's, which answers where nobody is asking.
    """

    plan: FeaturePlan | None = None
    recommender: Recommender | None = None
    why: str = "recommend: no model has been promoted. Run headwater train, then headwater promote."
    behind: bool = False
    experiment: Experiment = ALONE
    variants: Mapping[str, Recommender] = field(default_factory=dict)
    shadow: Shadow | None = None


class Wanted(NamedTuple):
    """What the state is made from; another one is another state."""

    registry: str
    champion: str | None
    challenger: str | None
    shadow: str | None
    files: Stamps
    arrivals: int = 0
    """Of the items that have come since."""


class _Held(NamedTuple):
    """A bundle in memory, with the items that had come by a version of them."""

    recommender: Recommender
    arrivals: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """Bundles in memory, by what they are for; ``None`` for one that cannot be had or that nobody needs."""

    champion: Recommender
    challenger: Recommender | None = None
    shadow: Recommender | None = None


class Live:
    """Follows the registry's fingerprint, ``bundles/aliases.json`` and the files of :mod:`serving.tuning`.

    A state that cannot be loaded leaves the one before in force, is logged and tried again. At a start, when there is
    none before, the last of the earlier champions that can be loaded answers meanwhile. Files that cannot be read leave
    what they said before in force, until they change.
    """

    def __init__(
        self,
        settings: Settings,
        build: Callable[[FeaturePlan, Path], Recommender],
        on_swap: Callable[[Loaded], None] = lambda loaded: None,
        telemetry: Telemetry | None = None,
        arrivals: Callable[[], int] = lambda: 0,
    ) -> None:
        self._settings = settings
        self._build = build
        self._on_swap = on_swap
        self._arrivals = arrivals
        self._telemetry = telemetry or Telemetry()
        self._loaded = Loaded()
        self._bundles: dict[tuple[str, str], _Held] = {}
        self._tuning: Tuning | None = None
        self._seen: Wanted | None = None
        self._retry_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="bundle-poll", daemon=True)

    @property
    def now(self) -> Loaded:
        """The state to answer with."""
        return self._loaded

    @property
    def plan(self) -> FeaturePlan:
        """The compiled plan.

        Raises
        ------
        ConfigError
            Nothing has been applied, or it cannot be compiled; the message has the next step.
        """
        if self._loaded.plan is None:
            repo = self._settings.repo
            raise ConfigError(f"{repo}: no feature plan is loaded. Run feast -c {repo} apply, or see the server's log.")
        return self._loaded.plan

    @property
    def recommender(self) -> Recommender:
        """The control's funnel.

        Raises
        ------
        ModelError
            There is none; the message has the next step.
        """
        loaded = self._loaded
        if loaded.recommender is None:
            raise ModelError(loaded.why)
        return loaded.recommender

    def of(self, user_id: str) -> Recommender:
        """The funnel of the variant that a user was dealt.

        Raises
        ------
        ModelError
            As :attr:`recommender`.
        """
        loaded = self._loaded
        found = loaded.variants.get(loaded.experiment.variant_of(user_id))
        return self.recommender if found is None else found

    def start(self) -> None:
        """Load what there is, then follow it."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._closed.set()
        self._thread.join()
        _end(self._loaded.shadow)

    def refresh(self) -> bool:
        """Swap if something new is there; whether it did."""
        registry = registry_sha256(self._settings.repo) if self._has_repo() else ""
        wanted = Wanted(registry, *aliases.versions(self._settings), stamps(self._settings.repo), self._arrivals())
        if wanted == self._seen and (not self._retry_at or time.monotonic() < self._retry_at):
            return False
        changed, self._seen, self._retry_at = wanted != self._seen, wanted, 0.0
        try:
            plan = load_plan(self._settings.repo) if registry else None
            self._loaded = replace(self._loaded, plan=plan)
            fresh = self._load(plan, wanted)
        except Exception as error:
            self._failed(wanted.champion, error)
            why = str(error) if isinstance(error, HeadwaterError) else "recommend: the bundle cannot be loaded."
            self._loaded = replace(self._loaded, why=why, behind=True)
            self._stand_in(wanted)
            return False
        self._publish(fresh)
        if changed or not self._retry_at:
            log.info("loaded", bundle=wanted.champion, shares=fresh.experiment.shares, repo=str(self._settings.repo))
        return True

    def _publish(self, fresh: Loaded) -> None:
        before, self._loaded = self._loaded, fresh
        if before.shadow is not fresh.shadow:
            _end(before.shadow)
        self._telemetry.shares(fresh.experiment.shares if fresh.recommender else {})
        self._on_swap(fresh)

    def _load(self, plan: FeaturePlan | None, wanted: Wanted) -> Loaded:
        """Make the state of the files as they are, or where they contradict, of what they said before."""
        if plan is None or wanted.champion is None:
            self._bundles = {}
            return Loaded(plan)
        try:
            tuning = read_tuning(self._settings.repo)
            fresh = self._on(plan, wanted, tuning)
        except ConfigError as error:
            if self._tuning is None:
                raise
            self._telemetry.settings(refused=True)
            log.error("settings_left_as_they_were", reason=str(error))
            return self._on(plan, wanted, self._tuning)
        self._telemetry.settings(refused=False)
        self._tuning = tuning
        return fresh

    def _on(self, plan: FeaturePlan, wanted: Wanted, tuning: Tuning) -> Loaded:
        """Bring the bundles into memory, and deal them."""
        assert wanted.champion is not None
        declared = tuning.surfaces
        basis = f"{wanted.registry} {declared.features.model_dump_json()} {declared.sources.model_dump_json()}"
        champion, beside = wanted.champion, _beside(wanted, tuning.experiment)
        held = {champion: self._bundle(plan, basis, champion, wanted.arrivals)}
        self._bundles = {key: one for key, one in self._bundles.items() if key in ((basis, champion), (basis, beside))}
        if beside is not None and beside not in held:
            if (basis, beside) not in self._bundles:  # which takes a while
                self._publish(_dealt(plan, tuning, _Pair(held[champion]), self._telemetry))
            try:
                held[beside] = self._bundle(plan, basis, beside, wanted.arrivals)
            except Exception as error:
                self._failed(beside, error)
        pair = _Pair(held[champion], held.get(wanted.challenger or ""), held.get(wanted.shadow or ""))
        return _dealt(plan, tuning, pair, self._telemetry)

    def _bundle(self, plan: FeaturePlan, basis: str, version: str, arrivals: int) -> Recommender:
        """A bundle, read unless it is in memory, where items that have come are added to it; at most two are."""
        held = self._bundles.get((basis, version))
        if held is None:
            self._make_room()
        if held is None or held.arrivals != arrivals:
            held = _Held(self._build(plan, self._settings.bundles_dir / version), arrivals)
            self._bundles[basis, version] = held
        return held.recommender

    def _make_room(self) -> None:
        """Where two bundles are in memory, let go of the one that is not the champion's."""
        serving = self._loaded.recommender
        if len(self._bundles) < MOST_BUNDLES or serving is None or self._tuning is None or self._loaded.plan is None:
            return
        self._bundles = {key: one for key, one in self._bundles.items() if one.recommender.version == serving.version}
        for champion in self._bundles.values():
            alone = _dealt(self._loaded.plan, self._tuning, _Pair(champion.recommender), self._telemetry)
            self._publish(replace(alone, behind=self._loaded.behind, why=self._loaded.why))

    def _stand_in(self, wanted: Wanted) -> None:
        """Answer everyone with the champion that answers, or with an earlier one where there is none."""
        plan, serving, why = self._loaded.plan, self._loaded.recommender, self._loaded.why
        if plan is None:
            return
        for version in [serving.version] if serving else aliases.former_champions(self._settings):
            try:
                fresh = self._load(plan, wanted._replace(champion=version, challenger=None, shadow=None))
            except Exception as error:
                log.error("load_failed", bundle=version, reason=str(error))
                continue
            self._publish(replace(fresh, why=why, behind=True))
            log.warning("stands_in", bundle=version)
            return

    def _failed(self, version: str | None, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        known = isinstance(error, HeadwaterError)
        log.error("load_failed", bundle=version, reason=str(error), exc_info=None if known else error)

    def _has_repo(self) -> bool:
        return (self._settings.repo / "feature_store.yaml").is_file()

    def _follow(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                self.refresh()
            except Exception as error:  # a poll that fails is the next poll's chance
                log.error("poll_failed", exc_info=error)


def _beside(wanted: Wanted, experiment: Experiment) -> str | None:
    """Version to hold beside the champion's: the challenger while users see it, else the shadow."""
    tried = any(variant.share and variant.bundle == CHALLENGER for variant in experiment.variants.values())
    if not tried or wanted.challenger is None:
        return wanted.shadow
    if wanted.shadow not in (None, wanted.champion, wanted.challenger):
        log.warning("shadow_left_out", bundle=wanted.shadow, reason="champion and challenger are in memory already")
    return wanted.challenger


def _dealt(plan: FeaturePlan, tuning: Tuning, pair: _Pair, telemetry: Telemetry) -> Loaded:
    """Give every variant its bundle with its settings; what cannot have its own has the champion's and says so.

    Raises
    ------
    ConfigError
        The settings contradict the champion.
    """
    shadow = _shadow(tuning, pair, telemetry)
    try:
        variants = {
            name: _variant(name, tuned, tuning.experiment.variants[name].bundle == CHALLENGER, pair, shadow)
            for name, tuned in tuning.variants.items()
        }
    except ConfigError:
        _end(shadow)
        raise
    control = variants[tuning.experiment.control]
    return Loaded(plan, control, experiment=tuning.experiment, variants=variants, shadow=shadow)


def _shadow(tuning: Tuning, pair: _Pair, telemetry: Telemetry) -> Shadow | None:
    if pair.shadow is None or pair.shadow is pair.champion:
        return None
    try:
        return Shadow(pair.shadow.version, pair.shadow.tuned(tuning.control).score, telemetry)
    except ConfigError as error:
        log.error("shadow_left_out", bundle=pair.shadow.version, reason=str(error))
        return None


def _variant(name: str, tuned: Tuned, challenges: bool, pair: _Pair, shadow: Shadow | None) -> Recommender:
    tuned = replace(tuned, shadow=shadow)
    if not challenges:
        return pair.champion.tuned(tuned)
    if pair.challenger is not None:
        try:
            return pair.challenger.tuned(tuned)
        except ConfigError as error:
            log.error("variant_left_out", variant=name, reason=str(error))
    return pair.champion.tuned(replace(tuned, degraded=(f"variant.{name}",)))


def _end(shadow: Shadow | None) -> None:
    if shadow is not None:
        shadow.close()
