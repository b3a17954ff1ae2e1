"""The same funnel as one would write it in an afternoon: Feast's SDK on Feast's Redis store, LightGBM's own predict,
MMR in numpy.

It is spared what is not its point: gRPC, the impression log, reasons, fallbacks. It reads the values that our reader
gave for the same users and candidates, written to Feast's store as ready-made ones, with no window left to merge, and
shares our bundle's user tower, index and numpy functions of request-time features.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, FileSource, ValueType
from feast.field import Field
from feast.repo_config import RepoConfig
from feast.types import Array, Float64, String
from numpy.typing import NDArray

from benchmarks.rerank import naive_mmr
from benchmarks.stores import server
from headwater.assemble import REQUEST_TIME, Assembly
from headwater.plan import BatchView, FeaturePlan, View
from models.bundle import Bundle
from serving.run import Run
from serving.surfaces import FeatureNames, Surface

HISTORY = "user_history"
POOL = 5
"""Candidates looked at for each place, the best by score, as in the funnel."""


@dataclass(frozen=True)
class Straightforward:
    """One surface's list, made from Feast's store at ``url``."""

    store: FeatureStore
    bundle: Bundle
    surface: Surface
    names: FeatureNames
    assembly: Assembly
    fixed: Mapping[str, Sequence[int]]
    """What sources propose to everyone."""
    url: str

    def recommend(self, user_id: str, now_ms: int) -> list[str]:
        """Item ids, best first."""
        own, recent = self._history(user_id)
        items = self._candidates(user_id, own, recent)
        features = self._features(user_id, items, now_ms)
        scores = self.bundle.ranker.booster.predict(features, raw_score=True, num_threads=1).astype(np.float32)
        best = np.argsort(-scores, kind="stable")[: POOL * self.surface.limit]
        chosen = naive_mmr(scores[best], self.bundle.vectors[items[best]], self.surface.limit, self.surface.diversity)
        return self.bundle.items.ids.take(items[best[chosen]])

    def _history(self, user_id: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        wanted = [f"{HISTORY}:own", f"{HISTORY}:recent"]
        told = self.store.get_online_features(wanted, [{self.names.user: user_id}]).to_dict()
        own, recent = (self.bundle.items.dense(told[name][0] or []) for name in ("own", "recent"))
        return own, recent

    def _candidates(self, user_id: str, own: NDArray[np.int32], recent: NDArray[np.int32]) -> NDArray[np.int32]:
        wanted = self.surface.sources
        near = np.empty(0, np.int32)
        user = self.bundle.users.dense([user_id])
        if user[0] >= 0 or len(recent):
            vector = self.bundle.encoder.encode(user, recent[None, :])
            near = self.bundle.index.search(vector, wanted["two_tower"])[0]
        proposed = {**self.fixed, "buy_it_again": own[: wanted["buy_it_again"]].tolist(), "two_tower": near.tolist()}
        return np.array(list(dict.fromkeys(item for name in wanted for item in proposed[name])), np.int32)

    def _features(self, user_id: str, items: NDArray[np.int32], now_ms: int) -> NDArray[np.float32]:
        catalogue, names = self.bundle.items, self.names
        held = {key: catalogue.text[name].take(items) for key, name in names.attributes.items()}
        held[names.item] = catalogue.ids.take(items)
        rows = [
            {names.user: user_id, **dict(zip(held, each, strict=True))} for each in zip(*held.values(), strict=True)
        ]
        wanted = [f"{view}:{name}" for view, features in self.assembly.needed.items() for name in features]
        told = self.store.get_online_features(wanted, rows).to_dict()
        columns = {
            (view, name): np.array(told[name], np.float64)  # None becomes NaN
            for view, features in self.assembly.needed.items()
            for name in features
        }
        return self.assembly.matrix(columns, {REQUEST_TIME: np.full(len(rows), now_ms)}, len(rows))


@contextlib.contextmanager
def straightforward(
    plan: FeaturePlan, bundle: Bundle, surface: Surface, names: FeatureNames, runs: Sequence[Run]
) -> Iterator[Straightforward]:
    """Feast's store of its own Redis, with what these requests have read."""
    assembly = Assembly(plan, names.ranker)
    views = [plan.view(name) for name in assembly.needed]
    keys = sorted({key for view in views if isinstance(view, View | BatchView) for key in view.join_keys})
    entities = {key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in keys}
    with server() as url, tempfile.TemporaryDirectory() as folder:
        home, frames = Path(folder), _frames(assembly, plan, runs)
        frames[HISTORY] = _histories(bundle, names, runs)
        made = []
        for name, frame in frames.items():
            frame.to_parquet(home / f"{name}.parquet")
            held = [key for key in entities if key in frame]
            made.append(FeatureView(
                name=name, entities=[entities[key] for key in held], ttl=timedelta(0),
                source=FileSource(path=str(home / f"{name}.parquet"), timestamp_field="event_timestamp"),
                schema=[
                    Field(name=column, dtype=Array(String) if name == HISTORY else Float64)
                    for column in frame if column not in (*held, "event_timestamp")
                ],
            ))  # fmt: skip
        online = {"type": "redis", "connection_string": url.removeprefix("redis://").removesuffix("/0")}
        store = FeatureStore(config=RepoConfig(
            project="straightforward", provider="local", registry=str(home / "registry.db"), repo_path=home,
            online_store=online, entity_key_serialization_version=3,
        ))  # fmt: skip
        store.apply([*entities.values(), *made])
        for name, frame in frames.items():
            store.write_to_online_store(name, frame)
        fixed = {
            name: np.argsort(-weights, kind="stable")[: surface.sources[name]].tolist()
            for name, weights in (("popular", bundle.popularity), ("trending", bundle.trending))
        }
        yield Straightforward(store, bundle, surface, names, assembly, fixed, url)


def _frames(assembly: Assembly, plan: FeaturePlan, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Every row that was read, by view."""
    found: dict[str, pd.DataFrame] = {}
    for name, features in assembly.needed.items():
        view = plan.view(name)
        assert isinstance(view, View | BatchView)
        held: dict[tuple[str, ...], tuple[Any, ...]] = {}
        for run in runs:
            assert run.features is not None
            read = run.features.views[name]
            columns = zip(*(np.asarray(read.values[feature]).tolist() for feature in features), strict=True)
            held |= {tuple(key): row for key, row, known in zip(read.keys, columns, read.found, strict=True) if known}
        rows = [(*key, *row) for key, row in held.items()]
        found[name] = pd.DataFrame(rows, columns=[*view.join_keys, *features]).assign(event_timestamp=datetime.now(UTC))
    return found


def _histories(bundle: Bundle, names: FeatureNames, runs: Sequence[Run]) -> pd.DataFrame:
    ids = bundle.items.ids
    rows = {run.request.user_id: (ids.take(run.user.own), ids.take(run.user.recent)) for run in runs}
    told = [(user, own, recent) for user, (own, recent) in rows.items()]
    return pd.DataFrame(told, columns=[names.user, "own", "recent"]).assign(event_timestamp=datetime.now(UTC))
