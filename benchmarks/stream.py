"""Events a second from Kafka to the store, all tables of the example, against a blackhole and a plain loop."""

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts import empty, fill, log_of, platform, running, wait
from headwater.bench import Measure
from headwater.registry.manifest import load_plan
from headwater.runtime import process
from headwater.settings import Settings
from streaming import health, telemetry
from streaming.progress import end_offsets, running_job, wait_until_caught_up

EVENTS = 1_000_000
PARTITIONS = (2, 8)
JOB, BLACKHOLE, LOOP = "streaming.job", "benchmarks.blackhole_job", "benchmarks.python_loop"


def measure(size: float) -> Sequence[Measure]:
    """Each rate counts from when all tasks run, or the first poll, to when the last event is readable."""
    events = max(1_000, int(EVENTS * size))
    rates: dict[tuple[str, int], float] = {}
    for partitions in PARTITIONS:
        with platform(partitions) as settings:
            fill(settings, events)
            for module in (BLACKHOLE, JOB, LOOP) if partitions == PARTITIONS[0] else (BLACKHOLE, JOB):
                empty(settings)
                rates[module, partitions] = events / _seconds(settings, module, events)
    few, many = PARTITIONS
    return [
        _measure(f"{few} partitions", rates[JOB, few], "the same query into a blackhole", rates[BLACKHOLE, few], 0.5),
        _measure(
            f"{many} partitions", rates[JOB, many], "the same query into a blackhole", rates[BLACKHOLE, many], 0.5
        ),
        _measure(f"{few} partitions, loop", rates[JOB, few], "a plain Python consumer loop", rates[LOOP, few], None),
        _measure(f"{many} partitions, {few}", rates[JOB, many], f"{few} partitions", rates[JOB, few], 1.0),
    ]


def _measure(name: str, rate: float, baseline: str, other: float, target: float | None) -> Measure:
    ratio = rate / other
    holds = None if target is None else ratio >= target
    return Measure(name, round(rate), "events/s", baseline, round(other), round(ratio, 2), target, holds)


def _seconds(settings: Settings, module: str, events: int) -> float:
    with running(settings, module) as started:
        if module == LOOP:
            said = log_of(settings, module)
            wait(lambda: bool(_told(said)), started, "the loop's first batch")
            begun = time.monotonic()
            first = _told(said)
            wait(lambda: _told(said) >= events, started, "the loop's last batch")
            return (time.monotonic() - begun) * events / (events - first)
        wait(lambda: _all_tasks_run(settings), started, "the job's start")
        begun = time.monotonic()
        _until_readable(settings, started)
        return time.monotonic() - begun


def _told(log: Path) -> int:
    lines = process.last_lines(log, 1)
    return int(lines[0]) if lines and lines[0].isdigit() else 0


def _all_tasks_run(settings: Settings) -> bool:
    job = running_job(settings)
    if job is None:
        return False
    with telemetry.connect(settings) as store:
        now = health.look(job, store)
    return now.tasks_running == now.tasks > 0


def _until_readable(settings: Settings, started: process.Process) -> None:
    """Wait for the last record to be read, and only then ask for checkpoints, which cost time."""
    job = running_job(settings)
    ends = end_offsets(settings, load_plan(settings.repo))
    wanted = {key: end for key, (first, end) in ends.items() if end > first}

    def read() -> bool:
        found = {} if job is None else telemetry.read_offsets(job)
        return all(found.get(key, 0) >= end for key, end in wanted.items())

    wait(read, started, "the job's last record")
    wait_until_caught_up(settings, 600)
