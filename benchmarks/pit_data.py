"""Labels and ready-made rows for the join benchmarks, and the Feast repositories that name them."""

import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headwater.plan import DAY_MS

START = 19_000 * DAY_MS
DAYS, TTL_DAYS = 90, 30
ROWS_A_USER = 100
PER_GROUP = 1 << 20
KEYS = ("user_id", "item_id")


@dataclass(frozen=True)
class Source:
    """A view's Parquet file: its keys, its feature columns, and the column of created times where there is one."""

    name: str
    keys: tuple[str, ...]
    features: Mapping[str, str]
    created: str | None = None


TIMED = tuple(Source(f"view{at}", ("user_id",), {f"amount{at}": "Float64", f"visits{at}": "Int64"}) for at in range(3))


def draw(folder: Path, labels: int, rows: int, hot: float = 0.0, seed: int = 7) -> None:
    """Write ``labels.parquet`` and three views, in order of time; no user has two rows of a view at one instant.

    User 0 has a share ``hot`` of the labels and of each view's rows beside what all have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    users = max(2, rows // ROWS_A_USER)
    for source in TIMED:
        user, time = _distinct_instants(rng, users, rows, hot)
        amount, visits = source.features
        pq.write_table(
            pa.table({
                "user_id": user, amount: rng.normal(0, 100, len(user)), visits: rng.integers(0, 1_000, len(user)),
                "event_timestamp": pa.array(time, pa.timestamp("ms", "UTC")),
            }), folder / f"{source.name}.parquet", row_group_size=PER_GROUP,
        )  # fmt: skip
    at = np.sort(START + rng.integers(DAY_MS, DAYS * DAY_MS, labels))
    strangers = users // 50 + 1
    asked = {"user_id": _heated(rng, rng.integers(0, users + strangers, labels), hot), "label": np.arange(labels)}
    pq.write_table(
        pa.table({**asked, "event_timestamp": pa.array(at, pa.timestamp("ms", "UTC"))}), folder / "labels.parquet"
    )


def _heated(rng: np.random.Generator, users: NDArray[np.int64], hot: float) -> NDArray[np.int64]:
    return np.where(rng.random(len(users)) < hot, 0, users) if hot else users


def _distinct_instants(
    rng: np.random.Generator, users: int, rows: int, hot: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    span = DAYS * DAY_MS
    place = np.unique(_heated(rng, rng.integers(0, users, rows), hot) * span + rng.integers(0, span, rows))
    user, time = place // span, START + place % span
    order = np.argsort(time, kind="stable")
    return user[order], time[order]


def repository(folder: Path, data: Path, store: str, sources: Sequence[Source]) -> Path:
    """Write and apply a Feast repository of the sources over one of the two offline stores, ``feast`` or ``ours``."""
    repo = folder / store
    (repo / "data").mkdir(parents=True, exist_ok=True)
    offline = {"feast": "spark", "ours": "batch.offline_store.HeadwaterOfflineStore"}[store]
    (repo / "feature_store.yaml").write_text(
        textwrap.dedent(f"""\
        project: pit
        provider: local
        registry: data/registry.db
        offline_store:
          type: {offline}
        online_store:
          type: sqlite
          path: data/online.db
        entity_key_serialization_version: 3
        """)
    )
    (repo / "definitions.py").write_text(_definitions(data, store, sources))
    command = [sys.executable, "-W", "ignore", "-m", "headwater.registry.lean", "-c", str(repo), "apply"]
    applied = subprocess.run(command, capture_output=True, text=True)
    if applied.returncode:
        raise RuntimeError(f"feast apply failed on {repo}: {applied.stderr[-800:]}")
    return repo


def _definitions(data: Path, store: str, sources: Sequence[Source]) -> str:
    kind, more = ("SparkSource", ', file_format="parquet"') if store == "feast" else ("FileSource", "")
    origin = "feast.infra.offline_stores.contrib.spark_offline_store.spark_source" if store == "feast" else "feast"
    lines = [
        "from datetime import timedelta", "from feast import Entity, FeatureView, ValueType",
        "from feast.field import Field", "from feast.types import Float64, Int64", f"from {origin} import {kind}",
        *(f'{key} = Entity(name="{key}", join_keys=["{key}"], value_type=ValueType.INT64)' for key in KEYS),
    ]  # fmt: skip
    for source in sources:
        schema = ", ".join(f'Field(name="{name}", dtype={dtype})' for name, dtype in source.features.items())
        made = "" if source.created is None else f', created_timestamp_column="{source.created}"'
        path = data / f"{source.name}.parquet"
        lines.append(
            f'{source.name} = FeatureView(name="{source.name}", entities=[{", ".join(source.keys)}], '
            f"ttl=timedelta(days={TTL_DAYS}), schema=[{schema}], "
            f'source={kind}(name="{source.name}_source", path="{path}", timestamp_field="event_timestamp"{made}{more}))'
        )
    return "\n".join(lines) + "\n"
