"""From purchases to a registered bundle, in the three steps that share one clock.

purchases before the requests ─► towers, index ─► retriever/
purchases, retriever ─► requests, candidates, labels ─► (features, by the batch room) ─► rows/
rows, retriever ─► ranker, calibration ─► bundles/<version>/
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headwater.errors import ConfigError
from headwater.log import get_logger
from headwater.settings import Settings
from models import registry, trends
from models.arrivals import first_seen
from models.bundle import Meta, Parts, Trained, read_items, write_bundle
from models.catalogue import ITEM_ID
from models.interactions import Interactions, newest_ms, read_purchases, users_of
from models.item_texts import describe_items
from models.lineage import code_version
from models.objectives import DEFAULT_OBJECTIVES, Objectives, load_objectives
from models.paths import Paths, paths_of
from models.propensity import settled
from models.ranking import DEFAULT_RANKER, Fitted, RankerConfig, fit_ranker, read_rows
from models.requests import number
from models.retrieval.neighbours import neighbour_table
from models.retriever import Provenance, Retriever
from models.segments import Segments, find_segments
from models.side_tables import FIRST_SEEN, SideTables
from models.tower_config import TowerConfig, UserTowerKind

log = get_logger("models")
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Service:
    """What the ranker reads: a feature service's columns in order, and hashes of what they mean, together and each."""

    name: str
    feature_names: tuple[str, ...]
    schema_hash: str
    feature_hashes: Mapping[str, str] = field(default_factory=dict)


class TunedSettings(BaseModel):
    """What is searched, within what LightGBM takes; see :mod:`models.tuning`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(gt=0, le=1)
    leaves: int = Field(ge=2)
    least_in_leaf: int = Field(ge=1)
    feature_share: float = Field(gt=0, le=1)
    row_share: float = Field(gt=0, le=1)


class Tuned(BaseModel):
    """The file ``tuned.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature_schema_hash: str
    settings: TunedSettings


def declared_config(service: Service, declared: Objectives) -> RankerConfig:
    """The default with what a repository declares.

    Raises
    ------
    ConfigError
        A constraint is on a feature that the service has not.
    """
    declared.require(service.feature_names)
    if declared == DEFAULT_OBJECTIVES:
        return DEFAULT_RANKER
    return replace(DEFAULT_RANKER, declared=declared, **declared.trees.model_dump(exclude_none=True))


def ranker_config(paths: Paths, service: Service, declared: Objectives = DEFAULT_OBJECTIVES) -> RankerConfig:
    """What was tuned for this service's features, or the default, with what a repository declares.

    Raises
    ------
    ConfigError
        A constraint is on a feature that the service has not, or ``tuned.json`` is damaged.
    """
    config = declared_config(service, declared)
    try:
        told = Tuned.model_validate_json(paths.tuned.read_text())
    except FileNotFoundError:
        return config
    except ValueError as error:
        reason = _first(error) if isinstance(error, ValidationError) else "it is no text"
        raise ConfigError(
            f"{paths.tuned}: not what headwater tune writes, {reason}. Tune again: headwater tune; or delete the file, "
            "and the default is taken."
        ) from None
    if told.feature_schema_hash != service.schema_hash:
        log.warning("tuned_settings_left", reason="they are for other features", remedy="headwater tune")
        return config
    settings = told.settings.model_dump()
    log.info("tuned_settings_taken", **settings)
    return replace(config, **settings)


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'whole'}: {found['msg'].lower()}"


def train_retriever(
    settings: Settings,
    home: Path,
    cutoff_ms: int,
    passes: int | None = None,
    progress: Progress = _silent,
    user_tower: UserTowerKind = "mean",
) -> Retriever:
    """Train both towers on the purchases before ``cutoff_ms``; saved to ``training/retriever``.

    Parameters
    ----------
    home
        Folder with ``items.parquet`` and ``users.parquet``.
    """
    from models.trip_stream import stream_trips
    from models.two_tower import Trainer

    config = TowerConfig(user_tower=user_tower)
    if passes is not None:
        config = replace(config, passes=passes, least_steps=0)
    paths = paths_of(settings)
    paths.root.mkdir(parents=True, exist_ok=True)
    corpus = stream_trips(settings.events_dir, home, cutoff_ms, config.n_recent, paths.trips)
    trips = corpus.log
    trainer = Trainer(corpus, config).fit(paths.checkpoint, progress)
    provenance = Provenance(
        trips.first_ms, cutoff_ms, trips.digest, config.n_recent, trips.n_purchases * trainer.epochs
    )
    memory = None if settings.index_memory_mb is None else settings.index_memory_mb * 2**20
    retriever = Retriever.of(
        corpus.users.ids, corpus.items, trainer.export(), provenance, settings.index_recall, memory
    )
    retriever.save(paths.retriever)
    paths.checkpoint.unlink(missing_ok=True)
    shutil.rmtree(paths.trips)
    log.info("retriever_trained", purchases=trips.n_purchases, epochs=trainer.epochs, cutoff_ms=cutoff_ms)
    return retriever


def train_ranker(
    settings: Settings,
    service: Service,
    created_ms: int,
    known_until_ms: int,
    config: RankerConfig | None = None,
    rows: Path | None = None,
    progress: Progress = _silent,
    repo: Path | None = None,
    home: Path | None = None,
    gap: timedelta | None = None,
) -> tuple[Meta, Fitted]:
    """Train on the rows in ``training/rows`` and publish a registered bundle; nobody is promoted.

    Parameters
    ----------
    config
        What ``headwater tune`` found for these features where there is none, else the default, with what the
        repository's ``objectives.toml`` declares.
    created_ms
        The platform's present instant.
    known_until_ms
        End of the purchases that training may know; popular and trending are as of then.
    repo
        The settings' own by default.
    home
        Folder with ``users.parquet``; without it there are no lists by segment of users.
    gap
        Between the requests that trees learn from and the later ones that stop them; the config's by default.
    """
    paths = paths_of(settings)
    retriever = Retriever.load(paths.retriever)
    if config is None:
        config = ranker_config(paths, service, load_objectives(repo or settings.repo))
    folder = rows or paths.rows
    table = read_rows(folder, service.feature_names, config.declared)
    config = replace(config, declared=settled(config.declared, folder), gap=gap or config.gap)
    fitted = fit_ranker(table, service.feature_names, config, progress)
    until_ms = min(known_until_ms, newest_ms(settings.events_dir) + 1)
    bought = number(read_purchases(settings.events_dir, until_ms), retriever.users, retriever.items)
    champion = registry.champion(settings)
    trained = Trained(
        created_ms=created_ms,
        service=service.name,
        feature_schema_hash=service.schema_hash,
        feature_names=service.feature_names,
        feature_hashes=dict(service.feature_hashes),
        training_start_ms=retriever.provenance.training_start_ms,
        training_end_ms=until_ms,
        learned_until_ms=int(table.at_ms.max()),
        data_hash=table.fingerprint(),
        metrics=fitted.metrics,
        objective=fitted.heads[0].name,
        parent=None if champion is None else champion.name,
        code_version=code_version(),
    )
    popularity = trends.popularity(bought, until_ms)
    parts = Parts(
        encoder=retriever.encoder,
        index=retriever.index,
        items=retriever.items.table(),
        users=retriever.users.values.tolist(),
        ranker=fitted.ranker,
        calibrator=fitted.calibrator,
        popularity=popularity,
        trending=np.maximum(trends.trending(bought, until_ms), 0),
        others=fitted.heads[1:],
        tables=SideTables(
            neighbour_table(bought),
            _segments(retriever, bought, until_ms, home),
            first_seen(bought, retriever.items.ids.values, until_ms, _arrivals_before(champion)),
            describe_items(retriever.items.text, popularity),
        ),
    )
    meta = write_bundle(settings.bundles_dir / registry.next_version(settings), trained, parts)
    registry.register(settings, settings.bundles_dir / meta.version)
    log.info("bundle_trained", version=meta.version, **{name: round(value, 4) for name, value in meta.metrics.items()})
    return meta, fitted


def _segments(retriever: Retriever, bought: Interactions, until_ms: int, home: Path | None) -> Segments | None:
    told = None if home is None else users_of(home)
    return None if told is None else find_segments(bought, retriever.users, told, until_ms)


def _arrivals_before(champion: Path | None) -> dict[str, int] | None:
    """Since when there was each item, by what serves now."""
    if champion is None or not (champion / FIRST_SEEN).is_file():
        return None
    ids = read_items(champion)[ITEM_ID].to_pylist()
    return dict(zip(ids, np.load(champion / FIRST_SEEN, allow_pickle=False).tolist(), strict=True))
