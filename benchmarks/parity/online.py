"""The online half: the real job on the real broker, and the reader over what it has folded."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks.oracle import History
from benchmarks.parity.cells import Tally, differing, judge
from benchmarks.parity.events import START
from benchmarks.parity.rounds import Round, edge, entities, instants_each, reach_ms, send
from benchmarks.parts import log_of, running, wait
from headwater.clock import ManualClock
from headwater.errors import UnavailableError
from headwater.online.connect import connect
from headwater.online.keys import Key
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, View
from headwater.runtime import process
from headwater.runtime.ready import is_marked
from headwater.settings import Settings, addresses
from streaming import progress, telemetry

JOB = "streaming.job"
READER, MATRIX = "Flink, store, reader", "Flink, store, read_matrix"
BATCH, ROWS, READS = 64, 300, 5
"""Entities read at a time; rows of a matrix, drawn from what was sent, and how often they are read as time passes."""


def compare(one: Round, cells: int, tallies: dict[str, Tally]) -> None:
    """Run the job over the round's stream, then read at instants after each entity's newest event."""
    _fold(one)
    chance, clock = one.draws(), ManualClock(0)
    with connect(addresses(one.settings).redis) as client:
        reader = OnlineReader(client, one.plan, clock)
        asked = {view.name: entities(one.histories[view.name], chance) for view in one.plan.views}
        each = instants_each(cells, one.plan, asked)
        tally = tallies.setdefault(READER, Tally())
        for view in one.plan.views:
            _just_after(reader, view, asked[view.name], one.histories[view.name], tally)
            for first in range(0, len(asked[view.name]), BATCH):
                batch = asked[view.name][first : first + BATCH]
                _later(reader, view, batch, one.histories[view.name], chance, each - 1, tally)
        for source in one.plan.sources:
            _matrix(reader, clock, one, source.name, chance, tallies.setdefault(MATRIX, Tally()))


def _fold(one: Round) -> None:
    """Let the job fold the stream; in the first round it is killed half-way and started again."""
    sent, settings = one.sent(), one.settings
    half, most = len(sent) // 2, len(sent) * 3 // 4
    send(settings, sent[:half])
    if one.number == 0:
        with _job(settings) as job:
            _catch_up(settings, job)
            before = _tiles(one)
            send(settings, sent[half:most])
            wait(lambda: _tiles(one) > before, job, "the job's next tile")
            _kill(job)
    with _job(settings) as job:
        send(settings, sent[most:] if one.number == 0 else sent[half:])
        _catch_up(settings, job)


@contextlib.contextmanager
def _job(settings: Settings) -> Iterator[process.Process]:
    with running(settings, JOB) as started:
        wait(lambda: is_marked(settings, "stream", started.pid), started, "the job's start", 300)
        yield started


def _kill(job: process.Process) -> None:
    """``kill -9`` of the job, and wait for the JVM and the workers that it leaves."""
    leader = psutil.Process(job.pid)
    orphans = leader.children(recursive=True)
    leader.kill()
    _, left = psutil.wait_procs(orphans, timeout=60)
    if left:
        raise UnavailableError(f"bench: {len(left)} processes outlived the killed job. End them: {left}.")


def _tiles(one: Round) -> int:
    with connect(addresses(one.settings).redis) as client:
        return telemetry.written(client, one.plan.project).tiles


def _catch_up(settings: Settings, job: process.Process) -> None:
    if not progress.wait_until_caught_up(settings, 900):
        told = process.last_lines(log_of(settings, JOB), 5)
        raise UnavailableError(f"bench: the job (pid {job.pid}) has not folded all within 900 s: {told}")


def _just_after(
    reader: OnlineReader, view: View, keys: Sequence[Key], held: Mapping[Key, History], tally: Tally
) -> None:
    """Without ``at`` each entity is read a millisecond after its newest event."""
    read = reader.read_views({view.name: keys})[view.name]
    at = [_history(view, held, key).newest + 1 for key in keys]
    naive = [_history(view, held, key).at(t) for key, t in zip(keys, at, strict=True)]
    judge(tally, view, list(zip(keys, at, strict=True)), naive, read.values, read.found & (read.at == at))


def _later(
    reader: OnlineReader, view: View, keys: Sequence[Key], held: Mapping[Key, History],
    chance: np.random.Generator, instants: int, tally: Tally,
) -> None:  # fmt: skip
    """Read entities together at instants after the newest event of any of them."""
    own = [_history(view, held, key) for key in keys]
    first = max(one.newest for one in own) + 1
    for _ in range(instants):
        at = edge(view, chance, first, first + reach_ms(view))
        read = reader.read_views({view.name: keys}, at)[view.name]
        judge(tally, view, [(key, at) for key in keys], [one.at(at) for one in own], read.values, read.found)


def _history(view: View, held: Mapping[Key, History], key: Key) -> History:
    return held[key] if key in held else History(view, [])


def _matrix(
    reader: OnlineReader, clock: ManualClock, one: Round, source: str, chance: np.random.Generator, tally: Tally
) -> None:
    """Read rows of several entities each, as serving does: float32, defaults in gaps, each view at its own instant.

    First while the clock is behind all events, so that each is read just after its newest, then as time passes.
    """
    views = [view for view in one.plan.views if view.source == source]
    names = list(dict.fromkeys(key for view in views for key in view.join_keys))
    whole = [sent.fields for sent in one.streams[source] if all(sent.fields[name] for name in names)]
    rows = [whole[place] for place in chance.integers(0, len(whole), ROWS)]
    until = max(sent.ingest_time for sent in one.streams[source])
    for now in (0, *sorted(chance.integers(START, until + DAY_MS, READS).tolist())):
        clock.set(now)
        matrix = reader.read_matrix(source, {name: [row[name] for row in rows] for name in names})
        columns = iter(matrix.values.T)
        for view in views:
            keys = [tuple(row[name] for name in view.join_keys) for row in rows]
            asked = list(zip(keys, matrix.views[view.name].at[matrix.rows[view.name]].tolist(), strict=True))
            _judge_numbers(tally, view, asked, one.histories[view.name], columns)


def _judge_numbers(
    tally: Tally, view: View, asked: Sequence[tuple[Key, int]], held: Mapping[Key, History], columns: Iterator[Any]
) -> None:
    """Hold the next columns of a matrix, one for each feature that is a number, to the naive answers."""
    naive = [_history(view, held, key).at(t)[1] for key, t in asked]
    for place, aggregate in enumerate(view.aggregates):
        if not aggregate.is_list:
            want = np.array([_served(cells[place], aggregate.default) for cells in naive], np.float32)
            got = np.ascontiguousarray(next(columns))
            tally.count(view, aggregate, asked, differing(want, got), want, got)


def _served(value: Any, default: float | None) -> float:
    given = default if value is None else value
    return float("nan") if given is None else float(given)
