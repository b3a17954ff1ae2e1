"""Online equals offline, or the cell is named: values read from the online store against Spark's over the archive.

A vector is one entity of one windowed view at one instant, drawn between the millisecond after the entity's newest
event and one window later, and a cell is one feature of it. Cells are compared with ``==``, lists too, and nothing
equals nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from batch.events import EVENT_TIME, Archive, archive_of, keys_of
from batch.labels import EVENT_TIMESTAMP, number_labels
from batch.point_in_time import FOUND, NEWEST, asked, view_values
from headwater.clock import ManualClock
from headwater.online.connect import connect
from headwater.online.keys import Key
from headwater.online.reader import OnlineReader, ViewRead
from headwater.plan import DAY_MS, FeaturePlan, View
from headwater.settings import Settings, addresses


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first cell that differs."""

    view: str
    feature: str
    entity: dict[str, str]
    at: int
    online: Any
    offline: Any


@dataclass(slots=True)
class Parity:
    """``in_flight``: cells that differ where the stream may have yet to fold the entity's newest archived event.

    ``by_feature`` counts mismatches by ``view:feature``.
    """

    vectors: int = 0
    cells_compared: int = 0
    cells_mismatched: int = 0
    in_flight: int = 0
    by_feature: dict[str, int] = field(default_factory=dict)
    first: Mismatch | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """What the online store told of one entity at one instant."""

    key: Key
    at: int
    read: ViewRead


def compare(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    cells: int = 10_000,
    seed: int = 0,
    fresh_after_ms: int | None = None,
) -> Parity:
    """Compare at least ``cells`` cells, spread over all windowed views, where the archive holds enough events.

    Parameters
    ----------
    fresh_after_ms
        Events from this instant on may be on their way through the stream; by default none is.
    """
    parity, rng = Parity(), np.random.default_rng(seed)
    each = math.ceil(cells / sum(len(view.features) for view in plan.views))
    client = connect(addresses(settings).redis)
    reader = OnlineReader(client, plan, ManualClock(0))
    archives: dict[str, Archive] = {}
    for view in plan.views:
        archive = archives.setdefault(view.source, archive_of(spark, settings, plan, view.source))
        vectors = [_read(reader, view, *drawn, rng) for drawn in _entities(archive, view, each, seed)]
        _judge(parity, view, vectors, _offline(archive, view, vectors), fresh_after_ms)
    return parity


def _entities(archive: Archive, view: View, count: int, seed: int) -> list[tuple[Key, int]]:
    """Draw events by a seeded hash: their keys and times; an entity drawn twice is asked at two instants."""
    drawn = (
        archive.project(view).selectExpr("*", f"xxhash64(_event_id, {seed}) AS _draw").orderBy("_draw", *keys_of(view))
    )
    picked = drawn.limit(count).toArrow()
    keys = list(zip(*(picked[name].to_pylist() for name in keys_of(view)), strict=True))
    return list(zip(keys, picked[EVENT_TIME].to_pylist(), strict=True))


def _read(reader: OnlineReader, view: View, key: Key, archived: int, rng: np.random.Generator) -> Vector:
    """Read an entity at an instant from its newest event on, up to one of the view's windows later."""
    newest = int(reader.read_views({view.name: [key]})[view.name].newest[0])
    windows = [aggregate.window_ms or DAY_MS for aggregate in view.aggregates]
    at = max(newest, archived) + 1 + int(rng.integers(0, rng.choice(windows)))
    return Vector(key, at, reader.read_views({view.name: [key]}, at)[view.name])


def _offline(archive: Archive, view: View, vectors: Sequence[Vector]) -> list[dict[str, Any]]:
    """Compute the same vectors from the archive, in the same order."""
    columns = {name: [vector.key[at] for vector in vectors] for at, name in enumerate(view.join_keys)}
    table = pa.table({**columns, EVENT_TIMESTAMP: pa.array([vector.at for vector in vectors], pa.int64())})
    with TemporaryDirectory() as folder:
        labels = number_labels(table, view.join_keys, Path(folder) / "labels.parquet")
        questions = asked(archive.spark.read.parquet(str(labels.path)), view)
        values = view_values(archive, view, questions, view.features, known=False, few=True)
        rows: list[dict[str, Any]] = values.orderBy("_row").toArrow().to_pylist()
        return rows


def _judge(
    parity: Parity,
    view: View,
    vectors: Sequence[Vector],
    offline: Sequence[dict[str, Any]],
    fresh_after_ms: int | None,
) -> None:
    wrong: Counter[str] = Counter()
    for vector, row in zip(vectors, offline, strict=True):
        parity.vectors += 1
        online = {name: _plain(values[0]) for name, values in vector.read.values.items()}
        for name in view.features:
            parity.cells_compared += 1
            if online[name] == _plain(row[name]) and bool(vector.read.found[0]) == row[FOUND]:
                continue
            behind = row[NEWEST] > int(vector.read.newest[0])
            if behind and fresh_after_ms is not None and row[NEWEST] >= fresh_after_ms:
                parity.in_flight += 1
                continue
            wrong[name] += 1
            if parity.first is None:
                entity = dict(zip(view.join_keys, vector.key, strict=True))
                parity.first = Mismatch(view.name, name, entity, vector.at, online[name], _plain(row[name]))
    parity.cells_mismatched += sum(wrong.values())
    parity.by_feature |= {f"{view.name}:{name}": wrong[name] for name in view.features if wrong[name]}


def _plain(value: Any) -> Any:
    """Nothing is None, a number is a Python number."""
    if value is None or isinstance(value, list):
        return value
    return None if math.isnan(value) else float(value)
