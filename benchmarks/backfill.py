"""Events a second and core of the windowed backfill beside Feast's tiled aggregation, and how its cost grows."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import sales
from benchmarks.processes import Done, Subject
from benchmarks.stores import server
from headwater.bench import Measure, Sample

EVENTS, STEPS, ROUNDS = 1_000_000, (1, 4, 16), 3
FEAST_EVENTS, LIMIT_S = (500, 1_000, 2_000, 4_000, 8_000, 16_000), 120
FEAST = "Feast's tiled aggregation"
GROWTH = 1.2
"""Cost may grow by at most so much more than the events do."""


def measure(size: float) -> Sequence[Measure]:
    """CPU of the whole process group: JVM, Python workers, driver."""
    with tempfile.TemporaryDirectory(prefix="headwater-backfill-") as folder, server() as url:
        home = Path(folder)
        events = {step: max(2_000, int(EVENTS * size * step)) for step in STEPS}
        for step, count in events.items():
            sales.write(home / str(step) / "archive" / "sales", count)
        ours = _started(home, "ours")
        try:
            ours.ask({"state": str(home / "1")}, 900)
            done: dict[int, list[Done]] = {step: [] for step in STEPS}
            for _ in range(ROUNDS):
                for step in STEPS:
                    done[step].append(ours.ask({"state": str(home / str(step))}, 900))
            stored = ours.ask({"state": str(home / "1"), "redis": url}, 900)
        finally:
            ours.end()
        most, feast = _feast(home)
    rates = {step: Sample([events[step] / one.cpu_s for one in done[step]]) for step in STEPS}
    theirs = Sample([most / feast.cpu_s])
    told = f"{FEAST} of {most:,} events, the most it does in {LIMIT_S} s"
    return [
        *(_rate(f"folded, {events[step]:,} events", rates[step], told, theirs, 100_000) for step in STEPS),
        _rate(f"folded and stored, {events[1]:,} events", Sample([events[1] / stored.cpu_s]), told, theirs, None),
        *(_growth(events, rates, step, 4 * step) for step in STEPS[:-1]),
    ]


def _started(home: Path, name: str) -> Subject:
    environment = {**os.environ, "HEADWATER_STATE_DIR": str(home / "state"), "HEADWATER_SPARK_HEAP_MB": "2048"}
    return Subject("benchmarks.sales", [name], environment, home / f"{name}.log")


def _feast(home: Path) -> tuple[int, Done]:
    """The largest number of events that Feast folds within the limit, and what that took."""
    subject = _started(home, "feast")
    best: tuple[int, Done] | None = None
    try:
        for count in FEAST_EVENTS:
            sales.write(home / f"feast-{count}" / "archive" / "sales", count)
            done = subject.ask({"state": str(home / f"feast-{count}")}, LIMIT_S)
            best = best if done.told is None and best else (count, done)
            if done.told is None or done.wall_s > LIMIT_S / 2:
                break
    finally:
        subject.end()
    assert best is not None
    return best


def _rate(name: str, ours: Sample, baseline: str, theirs: Sample, at_least: float | None) -> Measure:
    """More is better: the ratio is ours over theirs, and the target a rate, told in the name."""
    told = name if at_least is None else f"{name}, at least {at_least:,.0f}"
    holds = None if at_least is None else ours.median >= at_least
    low, high = ours.spread
    return Measure(
        told, round(ours.median), "events/s and core", baseline, round(theirs.median, 1),
        round(ours.median / theirs.median, 1), None, holds, (round(low), round(high)),
    )  # fmt: skip


def _growth(events: dict[int, int], rates: dict[int, Sample], few: int, many: int) -> Measure:
    """CPU an event at many events against few."""
    cost, other = 1e6 / rates[many].median, 1e6 / rates[few].median
    return Measure(
        f"an event among {events[many]:,}, at most {GROWTH}×", round(cost, 3), "CPU µs", f"among {events[few]:,}",
        round(other, 3), round(other / cost, 2), round(1 / GROWTH, 3), cost / other <= GROWTH,
    )  # fmt: skip
