"""Events a second from Kafka to the store, all tables of the example, against a blackhole and a plain loop.

What a start costs is left out: a job is measured from when a fifth of the backlog has been read or is readable, with
all compilers and workers warm, to its last event. The end of what writes is read from the store itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import redis

from benchmarks.parts import HOUSEHOLDS, empty, fill, platform, purchases, running
from benchmarks.stream_state import heap_measures
from headwater.bench import Measure
from headwater.clock import StoredClock
from headwater.errors import UnavailableError
from headwater.online.reader import OnlineReader
from headwater.registry.manifest import load_plan
from headwater.runtime import process
from headwater.settings import Settings, addresses
from streaming import telemetry
from streaming.progress import running_job

EVENTS = 1_000_000
PARTITIONS = (2, 8)
HEAP_MB = 4_096
"""For the state of so many events: an id or a tile takes some 400 bytes of the JVM's heap."""
WARM = 0.2
"""Share of the backlog that is worked off before counting begins."""
EYE_S, LONGEST_S, GIVE_UP_S = 0.05, 10.0, 300.0
"""Between two looks, at least and at most; without progress a run is given up."""
JOB, BLACKHOLE, LOOP = "streaming.job", "benchmarks.blackhole_job", "benchmarks.python_loop"
_BASELINES = {BLACKHOLE: "the same query into a blackhole", LOOP: "a plain Python consumer loop"}
_GROUPS = ("JVM", "Python", "store")


@dataclass(frozen=True)
class Figures:
    """Of one run: events a second, and CPU milliseconds an event by group of processes."""

    rate: float
    cpu_ms: Mapping[str, float]


def measure(size: float) -> Sequence[Measure]:
    """Rates at few and many partitions, then what an event costs each group of processes."""
    events = max(10_000, int(EVENTS * size))
    figures: dict[tuple[str, int], Figures] = {}
    few, many = PARTITIONS
    for partitions in PARTITIONS:
        with platform(partitions, flink_heap_mb=HEAP_MB) as settings:
            fill(settings, purchases(0, events))
            for module in (BLACKHOLE, JOB, LOOP) if partitions == few else (BLACKHOLE, JOB):
                empty(settings)
                figures[module, partitions] = _run(settings, module, events)
    rates = {key: figure.rate for key, figure in figures.items()}
    found = [
        _rate(f"{count} partitions", rates[JOB, count], _BASELINES[BLACKHOLE], rates[BLACKHOLE, count], 0.5)
        for count in PARTITIONS
    ]
    found.append(_rate(f"{few} partitions", rates[JOB, few], _BASELINES[LOOP], rates[LOOP, few], None))
    found.append(_rate(f"{many} partitions", rates[JOB, many], f"{few} partitions", rates[JOB, few], 1.0))
    found += [
        _cost(f"{count} partitions, {group}", figures[JOB, count].cpu_ms[group], module, figures[module, count].cpu_ms)
        for count, module in ((few, BLACKHOLE), (few, LOOP), (many, BLACKHOLE))
        for group in (*_GROUPS, "all")
    ]
    return [*found, *heap_measures(size)]


def _rate(name: str, rate: float, baseline: str, other: float, target: float | None) -> Measure:
    ratio = rate / other
    holds = None if target is None else ratio >= target
    return Measure(name, round(rate), "events/s", baseline, round(other), round(ratio, 2), target, holds)


def _cost(name: str, ours: float, module: str, theirs: Mapping[str, float]) -> Measure:
    other = theirs[name.rpartition(", ")[2]]
    ratio = round(other / ours, 2) if ours else 1.0
    return Measure(name, round(ours, 3), "CPU s per 1,000", _BASELINES[module], round(other, 3), ratio, None, None)


def _run(settings: Settings, module: str, events: int) -> Figures:
    with running(settings, module) as started, redis.Redis.from_url(addresses(settings).redis) as client:
        done = _records_read(settings) if module == BLACKHOLE else _readable(settings, client)
        first, begun = _reached(done, int(events * WARM), started, module)
        before = _cpu_s(started, client)
        _, ended = _reached(done, events, started, module)
        after = _cpu_s(started, client)
    cpu = {group: (after[group] - before[group]) * 1_000 / (events - first) for group in _GROUPS}
    return Figures((events - first) / (ended - begun), cpu | {"all": sum(cpu.values())})


def _reached(done: Callable[[], int], wanted: int, started: process.Process, name: str) -> tuple[int, float]:
    """Return how many are done, and when, as soon as they are enough.

    A look takes CPU that the subject then lacks, so it is taken when half of what is missing should be done.
    """
    began = moved = time.monotonic()
    before = count = done()
    while count < wanted:
        now, last = time.monotonic(), count
        rate = (count - before) / max(now - began, 1e-3)
        time.sleep(min(max((wanted - count) / rate / 2, EYE_S), LONGEST_S) if rate else LONGEST_S / 2)
        count = done()
        moved = time.monotonic() if count > last else moved
        if not started.is_alive() or time.monotonic() - moved > GIVE_UP_S:
            raise UnavailableError(f"bench: {name} stands at {count} of {wanted} events. Its log says why.")
    return count, time.monotonic()


def _readable(settings: Settings, client: "redis.Redis") -> Callable[[], int]:
    """Return what tells how many events a reader of the store sees: the purchases of all households."""
    reader = OnlineReader(client, load_plan(settings.repo), StoredClock(client))
    households = [(f"h{number}",) for number in range(HOUSEHOLDS)]

    def count() -> int:
        read = reader.read_views({"user_activity": households})["user_activity"]
        return int(np.nansum(np.asarray(read.values["user_purchases_total"], np.float64)))

    return count


def _records_read(settings: Settings) -> Callable[[], int]:
    """Return what tells how many records a job has taken from Kafka, by Flink's metrics."""

    def count() -> int:
        job = running_job(settings)
        return 0 if job is None else sum(telemetry.read_offsets(job).values())

    return count


def _cpu_s(started: process.Process, client: "redis.Redis") -> dict[str, float]:
    """CPU seconds that the JVM, the Python processes and the store have used so far."""
    leader = psutil.Process(started.pid)
    used = dict.fromkeys(_GROUPS, 0.0)
    for member in (leader, *leader.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # a shell around a worker, which has ended since
            times = member.cpu_times()
            used["JVM" if member.name() == "java" else "Python"] += times.user + times.system
    server = client.info("cpu")
    used["store"] = float(server["used_cpu_user"]) + float(server["used_cpu_sys"])  # type: ignore[index]
    return used
