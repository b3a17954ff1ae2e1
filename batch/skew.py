"""Training rows beside served vectors, feature by feature: did the model learn on what it is asked about?

Both are weighted to stand for all candidates: a training row by its ``weight`` (the inverse of how many negatives were
kept), a logged candidate by the inverse of its probability of having been drawn, an item shown by one. Each run is kept
as ``skew/<time>.json`` in the state folder.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from batch.divergence import MAJOR, Divergence, divergence
from batch.served import impressions
from batch.training_set import TrainingSet, read_meta
from headwater.errors import DataError
from headwater.files import write_whole
from headwater.settings import Settings
from models.requests import WEIGHT

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Skew:
    """``shifted``: features whose index is above 0.25, worst first. Times are epoch milliseconds of the platform."""

    service: str
    trained_rows: int
    trained_schema_hash: str
    trained_data_hash: str
    served_vectors: int
    served_schema_hash: str
    served_first_ms: int
    served_last_ms: int
    bundle_versions: dict[str, int]
    shifted: list[str]
    features: dict[str, Divergence]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Vectors:
    """``values`` (n, n_features), NaN where there is none, ``weight`` (n,)."""

    values: Floats
    weight: Floats
    times: list[int]
    versions: Counter[str]
    schema_hash: str


def skew(settings: Settings, rows: Path, since_ms: int = 0, until_ms: int = 2**62) -> Skew:
    """Compare the training set in ``rows`` with the vectors logged with ``since_ms <= time < until_ms``.

    Raises
    ------
    DataError
        There is no training set, or no vector of its service has been logged in that time.
    """
    meta = read_meta(rows)
    trained = ds.dataset(rows, format="parquet")
    served, names = _served(settings, meta, since_ms, until_ms)
    both = [name for name in names if name in trained.schema.names]
    weighted = WEIGHT in trained.schema.names
    table = trained.to_table(columns=[*both, *([WEIGHT] if weighted else [])])
    weight = table[WEIGHT].to_numpy().astype(np.float64) if weighted else np.ones(table.num_rows)
    features = {
        name: divergence(
            table[name].to_numpy().astype(np.float64), served.values[:, names.index(name)], weight, served.weight
        )
        for name in both
    }  # fmt: skip
    shifted = [name for name, found in features.items() if found.psi is not None and found.psi > MAJOR]
    shifted.sort(key=lambda name: -(features[name].psi or 0.0))
    return Skew(
        meta.service, meta.rows, meta.feature_schema_hash, meta.data_hash, len(served.weight), served.schema_hash,
        min(served.times), max(served.times), dict(served.versions), shifted, features,
    )  # fmt: skip


def keep(settings: Settings, found: Skew, finished_ms: int) -> Path:
    """Write the run beside those before it, named by the wall time at which it ended."""
    folder = settings.state_dir / "skew"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finished_ms}.json"
    write_whole(path, json.dumps({"finished_ms": finished_ms, **found.as_dict()}, indent=1))
    return path


def _served(settings: Settings, meta: TrainingSet, since_ms: int, until_ms: int) -> tuple[_Vectors, list[str]]:
    """Vectors of the training set's service under the newest schema they were logged with, and the features' names."""
    found: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
    for told in impressions(settings):
        if since_ms <= told["time"] < until_ms and told["feature_service"] == meta.service and told["feature_names"]:
            found.setdefault((told["feature_schema"], tuple(told["feature_names"])), []).append(_vectors(told))
    if not found:
        raise DataError(f"{settings.impressions_dir}: no vector of service {meta.service} was logged in that time.")
    (schema_hash, names), replies = max(found.items(), key=lambda held: held[1][-1]["time"])
    vectors = _Vectors(
        np.concatenate([one["values"] for one in replies]), np.concatenate([one["weight"] for one in replies]),
        [one["time"] for one in replies], Counter(one["version"] for one in replies), schema_hash,
    )  # fmt: skip
    return vectors, list(names)


def _vectors(told: dict[str, Any]) -> dict[str, Any]:
    rows = [*told["items"], *told["others"]]
    weight = [1.0] * len(told["items"]) + [1.0 / row["probability"] for row in told["others"]]
    values = np.array([row["features"] for row in rows], np.float32)  # null is NaN
    return {
        "time": told["time"], "version": told["bundle_version"], "values": values.astype(np.float64),
        "weight": np.array(weight),
    }  # fmt: skip
