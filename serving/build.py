"""From a bundle's directory to a funnel: the one place where the models' names meet the funnel's ports."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import redis

from headwater.clock import Clock, StoredClock
from headwater.errors import ConfigError, ModelError
from headwater.online.connect import connect
from headwater.online.reader import OnlineReader
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.settings import Settings, addresses
from models import bundle as bundles
from models.heads import weigh
from serving import rules
from serving.aliases import champion
from serving.asking import sought
from serving.availability import StoredAvailability, Withdrawn
from serving.funnel import Funnel
from serving.guard import Guard
from serving.impressions import Discard, ImpressionSink
from serving.ports import Bundle, Floats, Ints
from serving.reasons import Reasons
from serving.rulebook import RuleBook
from serving.search import Search
from serving.sources import BuyItAgain, Fixed, TwoTower
from serving.state import Remembering, StateReader
from serving.surfaces import SEARCH, Surfaces
from serving.telemetry import Telemetry
from serving.tuning import Tuning, read_tuning


@dataclass(frozen=True)
class Builder:
    """Makes funnels that share a store, a clock and a log."""

    store: redis.Redis
    clock: Clock
    impressions: ImpressionSink
    telemetry: Telemetry
    guard: Guard = field(default_factory=lambda: Guard("online store"))
    withdrawn: dict[str, Withdrawn] = field(default_factory=dict)
    """By project: a bundle that is loaded while the store is down knows what the one before it knew."""
    tunings: dict[Path, Tuning] = field(default_factory=dict)
    """By repository, as last read: while a file is being mended bundles can still be swapped."""

    def build(self, plan: FeaturePlan, folder: Path) -> Funnel:
        """Load a bundle and put it on the online store.

        Raises
        ------
        ModelError
            The bundle is damaged or was trained on other features than are applied.
        ConfigError
            ``surfaces.toml`` names a source or feature that there is not, or another file such a surface.
        """
        repo = Path(plan.repo)
        tuning = self._tuning(repo)
        config = tuning.surfaces
        ranker = config.features.ranker
        loaded = bundles.load_bundle(folder, plan.schema_hash(ranker), plan.feature_hashes(ranker))
        names = plan.service(ranker).names
        if loaded.ranker.feature_names != names:
            raise ModelError(
                f"bundle {loaded.version}: its ranker reads other columns than service {config.features.ranker} "
                "has now. Train anew."
            )
        reader = OnlineReader(self.store, plan, self.clock)
        _check(config, plan)
        funnel = Funnel(
            bundle=as_bundle(loaded),
            surfaces=config.surfaces,
            names=config.features,
            state=Remembering(StateReader(reader, config.features, loaded.users, loaded.items)),
            features=reader,
            availability=StoredAvailability(self._withdrawn_of(plan.project), loaded.items),
            rules=RuleBook(Path(plan.repo) / rules.FILE, loaded.items),
            reasons=Reasons(config.reasons, config.source_reasons, {name: at for at, name in enumerate(names)}),
            impressions=self.impressions,
            clock=self.clock,
            telemetry=self.telemetry,
            store=self.guard,
        )
        return self._tuned(funnel, repo, tuning)

    def _tuning(self, repo: Path) -> Tuning:
        """What the repository's files say, or last said."""
        try:
            return read_tuning(repo)
        except ConfigError:
            if repo not in self.tunings:
                raise
            return self.tunings[repo]

    def _tuned(self, funnel: Funnel, repo: Path, tuning: Tuning) -> Funnel:
        try:
            tuned = funnel.tuned(tuning.control)
        except ConfigError:
            if repo not in self.tunings:
                raise
            return funnel.tuned(self.tunings[repo].control)
        self.tunings[repo] = tuning
        return tuned

    def _withdrawn_of(self, project: str) -> Withdrawn:
        return self.withdrawn.setdefault(project, Withdrawn(self.store, project, self.guard))

    def build_warm(self, plan: FeaturePlan, folder: Path) -> Funnel:
        """Build, and make a list that nobody sees, so that no request waits for what is done once: loops compiled,
        connections opened, pages of the index read.

        Raises
        ------
        ModelError, ConfigError
            As :meth:`build`.
        """
        funnel = self.build(plan, folder)
        unseen = replace(funnel, telemetry=Telemetry())
        for surface in funnel.surfaces:
            query = surface == SEARCH
            unseen.run(
                sought(funnel.surfaces, "nobody", "any", 0, (), {}, {}) if query else funnel.request("nobody", surface)
            )
        return funnel


def build_recommender(settings: Settings, version: str | None = None, clock: Clock | None = None) -> Funnel:
    """Build the funnel that the server would answer with, in this process; what it shows is not logged.

    Parameters
    ----------
    version
        Of the bundle; the champion by default.

    Raises
    ------
    ModelError
        No bundle has been promoted.
    """
    chosen = version or champion(settings)
    if chosen is None:
        raise ModelError("recommend: no model has been promoted. Run headwater train, then headwater promote.")
    store = connect(addresses(settings).redis)
    builder = Builder(store, clock or StoredClock(store), Discard(), Telemetry())
    return builder.build(load_plan(settings.repo), settings.bundles_dir / chosen)


def as_bundle(loaded: bundles.Bundle) -> Bundle:
    """Fit a loaded bundle to the funnel's ports."""
    popular = _best_first(loaded.popularity)
    return Bundle(
        version=loaded.version,
        schema_hash=loaded.meta.feature_schema_hash,
        catalogue=loaded.items,
        sources={
            "buy_it_again": BuyItAgain(),
            "two_tower": TwoTower(loaded.encoder, loaded.index),
            "popular": Fixed(popular),
            "trending": Fixed(_best_first(loaded.trending)),
        },
        index=loaded.index,
        ranker=loaded.ranker,
        calibrate=loaded.calibrator,
        popular=popular,
        search=Search(loaded.items, loaded.words, loaded.index, loaded.popularity),
        weigh=partial(weigh, loaded.heads),
    )


def _best_first(weights: Floats) -> Ints:
    """Items that have any weight, heaviest first; ties by number."""
    order = np.argsort(-weights, kind="stable").astype(np.int32)
    return order[weights[order] > 0]


def _check(config: Surfaces, plan: FeaturePlan) -> None:
    own = plan.view(config.features.own)
    for feature in (config.features.own_weight, config.features.own_newest):
        if feature not in own.features:
            raise ConfigError(f"features: view {own.name} has no feature {feature!r}. Mend surfaces.toml.")
