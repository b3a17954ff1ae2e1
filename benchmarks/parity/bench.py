"""Random definitions over random streams: every engine's cells against the naive fold, bit for bit.

::

    drawn plan ─► Flink job ─► store ─► reader ─┐ at instants after an entity's newest event
    drawn stream ─► Kafka ─► archive ─► Spark ──┤ at any instants, on both clocks
                 └─► naive fold, in plain Python┴─► cells that differ: the target is none

A cell is one feature of one entity at one instant. Whether the entity is found is held equal too: where it is not, all
cells of the entity at that instant count as different. Numbers are equal when their bits are, nothing equals nothing.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from batch.session import end_session
from benchmarks.parity import offline, online
from benchmarks.parity.cells import Tally
from benchmarks.parity.rounds import drawn_round, send
from benchmarks.parts import servers
from headwater.bench import Measure
from headwater.cli.output import err
from headwater.errors import ConfigError
from headwater.runtime import kafka
from headwater.settings import addresses

ENGINES = ("naive", "spark", "flink", "reader")
ROUND_CELLS = 1_250_000


def measure(
    size: float, *, cells: int = 10_000_000, engines: str = "naive,flink,reader", seed: int = 0
) -> Sequence[Measure]:
    """Compare at least ``cells`` cells on each side; the first round's job is killed and started again half-way."""
    halves = _halves(engines)
    cells = max(1_000, int(cells * size))
    rounds = math.ceil(cells / ROUND_CELLS)
    tallies: dict[str, Tally] = {}
    events = 0
    with servers() as settings, ExitStack() as ended:
        ended.callback(end_session)
        for number in range(rounds):
            one = drawn_round(number, seed, math.ceil(cells / rounds), settings)
            events += sum(map(len, one.streams.values()))
            topics = [source.topic for source in one.plan.sources]
            kafka.create_topics(addresses(settings).kafka, settings.partitions, topics)
            if online not in halves:
                send(one.settings, one.sent())
            for half in halves:
                half.compare(one, math.ceil(cells / rounds), tallies)
            told = ", ".join(f"{name} {tally.compared:,}" for name, tally in tallies.items())
            err.print(f"round {number + 1} of {rounds}: {told} cells")
    told = f"rounds: {rounds}, events: {events:,}, seed: {seed}"
    return [_measure(name, tally, told) for name, tally in tallies.items()]


def _halves(engines: str) -> list[Any]:
    wanted = set(engines.split(","))
    unknown = sorted(wanted - set(ENGINES))
    if unknown or "naive" not in wanted or len(wanted) < 2 or ("flink" in wanted) != ("reader" in wanted):
        raise ConfigError(
            f"--engines {engines}: {', '.join(unknown) or 'these'} cannot be compared. Name naive, and beside it "
            "spark, or flink and reader (the one reads what the other folds), as in naive,spark,flink,reader."
        )
    return [online] * ("flink" in wanted) + [offline] * ("spark" in wanted)


def _measure(name: str, tally: Tally, told: str) -> Measure:
    return Measure(
        name=name, value=tally.mismatched, unit="cells mismatched", baseline="cells compared with the naive fold",
        baseline_value=tally.compared, ratio=None, target=0, holds=tally.mismatched == 0 and tally.compared > 0,
        note=told if tally.first is None else f"{told}; first {tally.first}",
    )  # fmt: skip
