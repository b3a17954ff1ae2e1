"""The JVM's heap while the keys of the stream's state grow tenfold: state in RocksDB against state on the heap."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts import empty, fill, platform, running, strangers, wait
from headwater.bench import Measure
from headwater.settings import Settings
from streaming import telemetry
from streaming.progress import running_job, wait_until_caught_up

EVENTS, TIMES = 10_000, 10
FLAT = 1.25
"""Heap at ten times the keys over heap at one, at most."""
BACKENDS = ("rocksdb", "heap")


def heap_measures(size: float) -> Sequence[Measure]:
    """Each event is of a household and a product that no other has, so that keys grow as events do."""
    few = max(1_000, int(EVENTS * size))
    held: dict[tuple[str, int], float] = {}
    for events in (few, few * TIMES):
        with platform(partitions=2) as settings:
            fill(settings, strangers(events))
            for backend in BACKENDS:
                empty(settings)
                held[backend, events] = _heap_mb(settings.model_copy(update={"state_backend": backend}), events)
    growth = {backend: held[backend, few * TIMES] / held[backend, few] for backend in BACKENDS}
    found = [
        Measure(
            f"JVM heap in use after {events:,} new keys a table", held["rocksdb", events], "MiB", "state on the heap",
            held["heap", events], round(held["heap", events] / held["rocksdb", events], 2), None, None,
        )
        for events in (few, few * TIMES)
    ]  # fmt: skip
    found.append(Measure(
        f"heap at {TIMES} times the keys over heap at one, at most {FLAT}", round(growth["rocksdb"], 2), "times",
        "state on the heap", round(growth["heap"], 2), round(growth["heap"] / growth["rocksdb"], 2), None,
        growth["rocksdb"] <= FLAT,
    ))  # fmt: skip
    return found


def heap_path(settings: Settings) -> Path:
    """Where ``benchmarks.heap_job`` tells: how often so far, and MiB."""
    return settings.run_dir / "heap"


def _heap_mb(settings: Settings, events: int) -> float:
    with running(settings, "benchmarks.heap_job") as started:

        def all_read() -> bool:
            job = running_job(settings)
            return job is not None and sum(telemetry.read_offsets(job).values()) >= events

        wait(all_read, started, "the last record")
        wait_until_caught_up(settings, 600)
        seen = _told(settings)[0]
        wait(lambda: _told(settings)[0] >= seen + 2, started, "a collection")  # begun and ended since
        return _told(settings)[1]


def _told(settings: Settings) -> tuple[int, float]:
    times, mb = heap_path(settings).read_text().split()
    return int(times), float(mb)
