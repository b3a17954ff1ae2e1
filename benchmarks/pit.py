"""The point-in-time join of ready-made views: CPU of the whole process group beside Feast's Spark store and DuckDB.

Each subject is a process of its own, started once and warmed by one small join; what the start costs is told apart.
Every value of ours is compared with DuckDB's, and on small tables that hold what Feast gets wrong, with a loop.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import pit_data, pit_defects
from benchmarks.processes import Done, Subject
from headwater.bench import Measure, Sample, compare


@dataclass(frozen=True)
class Size:
    """How much is joined, how often, and whether a loop of plain Python can check every value."""

    labels: int
    rows: int
    hot: float
    rounds: int
    is_looped: bool = False


SIZES = {
    "40k labels × 200k rows × 3 views": Size(40_000, 200_000, 0.0, 5, is_looped=True),
    "1M labels × 10M rows × 3 views": Size(1_000_000, 10_000_000, 0.0, 3),
    "1M labels × 10M rows × 3 views, 30 % of both one user's": Size(1_000_000, 10_000_000, 0.3, 1),
}
LIMIT_S = 180
"""Feast gets this long for one join; a join that has not ended by then is told as a lower bound."""
OURS, FEAST, DUCKDB = "ours", "feast", "duckdb"
NAMES = {FEAST: "Feast's Spark store", DUCKDB: "DuckDB's ASOF join"}
MODULE = "benchmarks.pit_subject"


def measure(size: float) -> Sequence[Measure]:
    """CPU seconds a join at two sizes, then the rows that are wrong where keys, ties and late rows are hard."""
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory(prefix="headwater-pit-") as folder:
        for at, (told, one) in enumerate(SIZES.items()):
            home = Path(folder) / str(at)
            pit_data.draw(home / "data", max(400, int(one.labels * size)), max(2_000, int(one.rows * size)), one.hot)
            measures += _of_size(told, home, one)
            shutil.rmtree(home)
        measures += pit_defects.measure(Path(folder) / "defects", started)
    return measures


def _of_size(told: str, home: Path, size: Size) -> list[Measure]:
    done: dict[str, list[Done]] = {name: [] for name in (OURS, FEAST, DUCKDB)}
    with started(home, pit_data.TIMED) as subjects:
        _warm(home, subjects)
        for at in range(size.rounds):
            for name, subject in subjects.items():
                if all(one.told for one in done[name]):
                    out = str(home / f"{name}.parquet") if at == 0 else None
                    done[name].append(
                        subject.ask({"labels": str(home / "data" / "labels.parquet"), "out": out}, LIMIT_S)
                    )
        starts = {name: subject.start for name, subject in subjects.items()}
    checks = [_agreement(told, home), *([_proof(told, home)] if size.is_looped else [])]
    return [*_costs(told, done), *_starts(told, starts), *_memory(told, done), *checks]


@contextmanager
def started(
    home: Path, sources: Sequence[pit_data.Source], names: Sequence[str] = (OURS, FEAST, DUCKDB)
) -> Iterator[Mapping[str, Subject]]:
    """Subjects over the same files, each with a repository of its own; ended at the end."""
    environment = {**os.environ, "HEADWATER_STATE_DIR": str(home / "state"), "HEADWATER_SPARK_HEAP_MB": "4096"}
    with ExitStack() as stack:
        subjects = {}
        for name in names:
            repo = home if name == DUCKDB else pit_data.repository(home, home / "data", name, sources)
            arguments = [name, str(repo), str(home / "data")]
            subjects[name] = Subject(MODULE, arguments, environment, home / f"{name}.log")
            stack.callback(subjects[name].end)
        yield subjects


def _warm(home: Path, subjects: Mapping[str, Subject]) -> None:
    few = home / "few.parquet"
    pq.write_table(pq.read_table(home / "data" / "labels.parquet").slice(0, 200), few)
    for subject in subjects.values():
        subject.ask({"labels": str(few)}, LIMIT_S)


def _costs(told: str, done: Mapping[str, Sequence[Done]]) -> list[Measure]:
    targets = {FEAST: 10.0, DUCKDB: 1 / 3}
    measures = []
    costs: dict[str, Callable[[Done], float]] = {"CPU s": lambda one: one.cpu_s, "s": lambda one: one.wall_s}
    for unit, cost in costs.items():
        ours = Sample([cost(one) for one in done[OURS]])
        for other, target in targets.items():
            ended = all(one.told for one in done[other])
            name = NAMES[other] if ended else f"{NAMES[other]}, not ended after {LIMIT_S} s"
            baseline = Sample([cost(one) for one in done[other]])
            found = compare(told, unit, ours, name, baseline, target if unit == "CPU s" else None)
            measures.append(
                found if ended or found.holds else replace(found, holds=None, note="at least so many times")
            )
    return measures


def _starts(told: str, starts: Mapping[str, Done]) -> list[Measure]:
    ours, feast = Sample([starts[OURS].cpu_s]), Sample([starts[FEAST].cpu_s])
    return [compare(f"start of process, JVM and session, {told}", "CPU s", ours, NAMES[FEAST], feast, None)]


def _memory(told: str, done: Mapping[str, Sequence[Done]]) -> list[Measure]:
    """Resident MiB at the most, of the process and all its children; each Spark may have a heap of 4,096."""
    most = {name: Sample([max(one.peak_mb for one in each)]) for name, each in done.items()}
    return [compare(f"memory, {told}", "MiB", most[OURS], NAMES[other], most[other], None) for other in NAMES]


def _agreement(told: str, home: Path) -> Measure:
    """Labels whose values differ from DuckDB's, by ``==``."""
    ours, duckdb = (_by_label(pq.read_table(home / f"{name}.parquet")) for name in (OURS, DUCKDB))
    wrong = np.zeros(len(duckdb), np.bool_) if len(ours) == len(duckdb) else np.ones(len(duckdb), np.bool_)
    for source in pit_data.TIMED if len(ours) == len(duckdb) else ():
        for feature in source.features:
            left, right = (table[feature].combine_chunks() for table in (ours, duckdb))
            same = np.asarray(left.is_valid()) == np.asarray(right.is_valid())
            wrong |= ~same | (np.asarray(left.fill_null(0)) != np.asarray(right.fill_null(0)))
    return Measure(
        f"rows unlike DuckDB's, {told}", int(wrong.sum()), "rows", "labels", len(duckdb), 0.0, None, not wrong.any()
    )


def _proof(told: str, home: Path) -> Measure:
    """Labels whose values differ from those that a loop over each user's rows finds."""
    joined = _by_label(pq.read_table(home / f"{OURS}.parquet")).to_pylist()
    wrong: set[int] = set()
    for source in pit_data.TIMED:
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in pq.read_table(home / "data" / f"{source.name}.parquet").to_pylist():
            rows.setdefault(row["user_id"], []).append(row)
        for label in joined:
            newest: dict[str, Any] = {}
            for row in rows.get(label["user_id"], ()):
                age = label["event_timestamp"] - row["event_timestamp"]
                seen = timedelta(0) <= age <= timedelta(days=pit_data.TTL_DAYS)
                if seen and (not newest or row["event_timestamp"] > newest["event_timestamp"]):
                    newest = row
            if any(label[feature] != newest.get(feature) for feature in source.features):
                wrong.add(label["label"])
    return Measure(
        f"rows unlike a loop's, {told}", len(wrong), "rows", "labels", len(joined), 0.0, None, not wrong
    )  # fmt: skip


def _by_label(table: pa.Table) -> pa.Table:
    return table.sort_by("label")
