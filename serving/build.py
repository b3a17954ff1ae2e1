"""From a bundle's directory to a funnel: the one place where the models' names meet the funnel's ports."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import redis

from headwater.clock import Clock, StoredClock
from headwater.errors import ConfigError, ModelError
from headwater.log import get_logger
from headwater.online.connect import connect
from headwater.online.mirror import Mirror
from headwater.online.names import Names
from headwater.online.reader import OnlineReader
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.settings import Settings, addresses
from models import bundle as bundles
from models.heads import weigh
from models.item_texts import ItemTexts, query_vector
from models.sentences import is_installed
from serving import rules
from serving.aliases import champion
from serving.arrivals import Arrivals
from serving.asking import sought
from serving.availability import StoredAvailability, Withdrawn
from serving.bundled import sources_of, tell_idle
from serving.digests import SharedDigests
from serving.funnel import Funnel
from serving.guard import Guard
from serving.hydration import Hydration, mirrored
from serving.impressions import Discard, ImpressionSink
from serving.patience import in_turn, patiently
from serving.ports import Bundle
from serving.reasons import Reasons
from serving.rulebook import RuleBook
from serving.search import Search
from serving.showings import StoredShowings
from serving.state import Remembering, StateReader
from serving.surfaces import SEARCH, FeatureNames, SourceSettings, Surfaces
from serving.telemetry import Telemetry
from serving.tuning import Tuning, read_tuning
from serving.turns import Turns

log = get_logger("serving")
NONE_SUCH = ("none such",)
"""An item to look up, so that all of them have their numbers."""


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
    turns: Turns = field(default_factory=Turns)
    run_dir: Path | None = None
    """Where what the processes of a server share may lie; without one each request asks the store for its items."""
    mirrors: MutableMapping[Path, Mirror] = field(default_factory=WeakValueDictionary)
    """By file: a bundle of the same items as the one before reads on, and nothing is filled anew."""
    trained: MutableMapping[tuple[Path, str], bundles.Bundle] = field(default_factory=WeakValueDictionary)
    """Bundles as they were read, by folder and schema: one that some funnel is made of is not read again."""
    arrivals: Arrivals | None = None
    """Items that came since a bundle was trained; without it there are those of its catalogue."""
    records: bool = True
    """Whether what is recommended is shown to somebody, and remembered as that."""
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
        trained = self._trained(plan, folder, ranker)
        names = plan.service(ranker).names
        if trained.ranker.feature_names != names:
            raise ModelError(
                f"bundle {trained.version}: its ranker reads other columns than service {config.features.ranker} "
                "has now. Train anew."
            )
        loaded = trained
        if self.arrivals is not None:
            loaded = patiently(partial(self.arrivals.added_to, trained))
        reader = OnlineReader(self.store, plan, self.clock)
        _check(config, plan)
        bundle = patiently(partial(as_bundle, loaded, config.sources))
        wanted = [name for surface in config.surfaces.values() for name in surface.quotas(newcomer=True)]
        tell_idle(bundle.version, bundle.sources, wanted)
        funnel = Funnel(
            bundle=bundle,
            surfaces=config.surfaces,
            names=config.features,
            state=Remembering(StateReader(reader, config.features, loaded.users, loaded.items)),
            features=Hydration(reader, self._items(plan, config.features, trained.items.ids)),
            availability=StoredAvailability(self._withdrawn_of(plan.project), loaded.items),
            rules=RuleBook(Path(plan.repo) / rules.FILE, loaded.items),
            reasons=Reasons(config.reasons, config.source_reasons, {name: at for at, name in enumerate(names)}),
            impressions=self.impressions,
            clock=self.clock,
            telemetry=self.telemetry,
            store=self.guard,
            showings=StoredShowings(self.store, plan.project, config.features.user, self.guard, self.records),
            turns=self.turns,
            trained=trained,
        )
        return self._tuned(funnel, repo, tuning)

    def _trained(self, plan: FeaturePlan, folder: Path, service: str) -> bundles.Bundle:
        """The bundle as it was trained."""
        schema = plan.schema_hash(service)
        held = self.trained.get((folder, schema))
        if held is None:
            digest_of = SharedDigests(self.run_dir) if self.run_dir else bundles.sha256_of
            held = patiently(partial(bundles.load_bundle, folder, schema, plan.feature_hashes(service), digest_of))
            self.trained[folder, schema] = held
        return held

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

    def _items(self, plan: FeaturePlan, names: FeatureNames, ids: Names) -> Mirror | None:
        if self.run_dir is None:
            return None
        folder = self.run_dir / "items"
        return mirrored(self.store, plan, self.clock, names.ranker, names.item, ids, folder, self.mirrors)

    def _withdrawn_of(self, project: str) -> Withdrawn:
        return self.withdrawn.setdefault(project, Withdrawn(self.store, project, self.guard))

    def build_warm(self, plan: FeaturePlan, folder: Path) -> Funnel:
        """Build, and make a list that nobody sees, so that no request waits for what is done once: loops compiled,
        connections opened, ids numbered, pages of the index read.

        Raises
        ------
        ModelError, ConfigError
            As :meth:`build`.
        """
        with in_turn(self.run_dir):
            began = time.monotonic()
            funnel = self.build(plan, folder)
            patiently(partial(_warm, replace(funnel, telemetry=Telemetry())))
        if self.arrivals is not None:
            self.arrivals.took(time.monotonic() - began)
        return funnel


def _warm(funnel: Funnel) -> None:
    for surface in funnel.surfaces:
        query = surface == SEARCH
        funnel.run(
            sought(funnel.surfaces, "nobody", "any", 0, NONE_SUCH, {}, {})
            if query
            else funnel.request("nobody", surface, exclude=NONE_SUCH)
        )


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
    builder = Builder(store, clock or StoredClock(store), Discard(), Telemetry(), records=False)
    return builder.build(load_plan(settings.repo), settings.bundles_dir / chosen)


def as_bundle(loaded: bundles.Bundle, sources: SourceSettings) -> Bundle:
    """Fit a loaded bundle to the funnel's ports.

    Raises
    ------
    ConfigError
        As :func:`serving.bundled.sources_of`.
    """
    return Bundle(
        version=loaded.version,
        schema_hash=loaded.meta.feature_schema_hash,
        catalogue=loaded.items,
        sources=sources_of(loaded, sources),
        index=loaded.index,
        ranker=loaded.ranker,
        calibrate=loaded.calibrator,
        popular=loaded.popular,
        search=Search(loaded.items, loaded.words, loaded.index, loaded.popularity, _told(loaded)),
        weigh=partial(weigh, loaded.heads),
    )


def _told(loaded: bundles.Bundle) -> ItemTexts | None:
    """What queries are compared with; ``None`` where no model can make their vectors."""
    texts = loaded.tables.texts
    if texts is None or texts.directions is None:
        return None
    if not is_installed():
        log.warning("queries_not_embedded", bundle=loaded.version, remedy="install the extra text, as for its training")
        return None
    query_vector("")  # maps the weights before a request waits for it
    return texts


def _check(config: Surfaces, plan: FeaturePlan) -> None:
    own = plan.view(config.features.own)
    for feature in (config.features.own_weight, config.features.own_newest):
        if feature not in own.features:
            raise ConfigError(f"features: view {own.name} has no feature {feature!r}. Mend surfaces.toml.")
