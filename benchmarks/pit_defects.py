"""What a point-in-time join has to get right, counted in wrong labels: composite keys, ties, late rows."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.pit_data import DAYS, KEYS, START, TTL_DAYS, Source
from benchmarks.processes import Subject
from headwater.bench import Measure
from headwater.plan import DAY_MS, HOUR_MS

LABELS, ROWS = 500, 2_000
PAIRS = Source("pairs", KEYS, {"pair_value": "Int64"})
TIES = Source("ties", ("user_id",), {"tied_value": "Int64"})
LATE = Source("late", ("user_id",), {"late_value": "Int64"}, created="created")
TOLD = {
    "pairs": "labels wrong, keys (1, 11) and (11, 1)",
    "ties": "labels wrong, two rows at one instant",
    "late": "labels wrong, rows that arrive late",
}
Start = Callable[[Path, Sequence[Source], Sequence[str]], AbstractContextManager[Mapping[str, Subject]]]
Row = tuple[tuple[int, ...], int, int, int]


def measure(home: Path, start: Start) -> list[Measure]:
    """Wrong labels of ours and of Feast's Spark store, each against a loop over the definition."""
    data = home / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(11)
    sources = (PAIRS, TIES, LATE)
    drawn = {source.name: _draw(rng, source, data) for source in sources}
    asked = _labels(rng, data / "labels.parquet")
    measures = []
    with start(home, sources, ["ours", "feast"]) as subjects:
        for source in sources:
            (feature,) = source.features
            wrong = {}
            for name, subject in subjects.items():
                out = home / f"{name}-{source.name}.parquet"
                subject.ask({"labels": str(data / "labels.parquet"), "features": [feature], "out": str(out)}, 300)
                wrong[name] = _wrong(pq.read_table(out), feature, asked, drawn[source.name], source)
            measures.append(Measure(
                TOLD[source.name], wrong["ours"], f"of {len(asked)}", "Feast's Spark store", wrong["feast"], 0.0, None,
                wrong["ours"] == 0,
            ))  # fmt: skip
    return measures


def _draw(rng: np.random.Generator, source: Source, data: Path) -> list[Row]:
    """Rows of few entities: instants on whole hours, so that some meet; some created days after they happened."""
    ids = np.array([1, 11, 111, 2, 22, 12, 21, 121, 211, 112])
    keys = [rng.choice(ids, ROWS) for _ in source.keys]
    time = START + rng.integers(0, DAYS * 24, ROWS) * HOUR_MS
    if source.name != "ties":  # each instant once, so that nothing but what is told can go wrong
        time = START + rng.permutation(DAYS * 24 * 60)[:ROWS] * 60_000
    late = np.where(rng.random(ROWS) < 0.2, rng.integers(1, 10, ROWS) * DAY_MS, 0)
    created = time + late if source.created else time
    values = np.arange(ROWS)
    (feature,) = source.features
    columns = {**dict(zip(source.keys, keys, strict=True)), feature: values, "event_timestamp": _instants(time)}
    if source.created:
        columns[source.created] = _instants(created)
    pq.write_table(pa.table(columns), data / f"{source.name}.parquet")
    owners = zip(*(key.tolist() for key in keys), strict=True)
    return list(zip(owners, time.tolist(), created.tolist(), values.tolist(), strict=True))


def _labels(rng: np.random.Generator, path: Path) -> list[tuple[dict[str, int], int]]:
    """Labels two by two at one instant, the second with its keys the other way round."""
    ids = np.array([1, 11, 111, 2, 22, 12, 21, 121, 211, 112])
    user, item = rng.choice(ids, LABELS // 2), rng.choice(ids, LABELS // 2)
    at = START + rng.integers(10 * 24 * 60, DAYS * 24 * 60, LABELS // 2) * 60_000 + 30_000
    users, items, instants = np.r_[user, item], np.r_[item, user], np.r_[at, at]
    pq.write_table(pa.table({
        "user_id": users, "item_id": items, "label": np.arange(len(users)), "event_timestamp": _instants(instants),
    }), path)  # fmt: skip
    return [
        ({"user_id": one, "item_id": other}, when)
        for one, other, when in zip(users.tolist(), items.tolist(), instants.tolist(), strict=True)
    ]


def _wrong(
    table: pa.Table, feature: str, asked: Sequence[tuple[dict[str, int], int]], rows: Sequence[Row], source: Source
) -> int:
    """Labels that came back not once, or with a value that is not the newest row's, as known at their instant."""
    told: dict[int, list[int | None]] = {}
    for label, value in zip(table["label"].to_pylist(), table[feature].to_pylist(), strict=True):
        told.setdefault(label, []).append(None if value is None or value != value else int(value))
    wrong = 0
    for label, (keys, at) in enumerate(asked):
        owner = tuple(keys[key] for key in source.keys)
        oldest = at - TTL_DAYS * DAY_MS
        seen = [
            (time, value) for key, time, made, value in rows if key == owner and oldest <= time <= at and made <= at
        ]
        newest = max((time for time, _ in seen), default=None)
        right: set[int | None] = {value for time, value in seen if time == newest}
        values = told.get(label, [])
        wrong += len(values) != 1 or values[0] not in (right or {None})
    return wrong


def _instants(ms: NDArray[np.int64]) -> pa.Array:
    return pa.array(ms, pa.timestamp("ms", "UTC"))
