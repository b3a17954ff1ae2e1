"""Index and models exchanged under load, twenty times: nothing fails, and nobody waits for it.

Then new products come to the same catalogue, each until a search finds it.
"""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from benchmarks.live import arrivals
from benchmarks.served import Served, promote, serving, stocked, versions
from headwater.bench import Measure
from headwater.clock import SystemClock
from headwater.errors import UnavailableError
from headwater.settings import addresses
from serving.load import Load, run

ITEMS, USERS, TREES, SKEW = 1_000_000, 2_500, 300, 1.0
SWAPS, RATE, SECONDS, CONNECTIONS, PRODUCTS = 20, 30.0, 5.0, 4, 5
QUIET, POLL_S, PATIENCE_S = 4, 0.05, 120.0
"""Loads without a swap before and after; between looks at what answers; and how long a swap may take."""


@dataclass
class Asked:
    """What came of calls: seconds of each, those answered, those that failed by code."""

    latency: list[float] = field(default_factory=list)
    ok: int = 0
    degraded: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def ask(self, served: Served, users: Sequence[str], seconds: float) -> None:
        """Send calls by the clock for so long."""
        load = Load(RATE, seconds, users, SKEW, track=0.0, seed=self.ok, connections=CONNECTIONS)
        told = run(served.address, load, SystemClock())
        self.latency += told.latency
        self.ok += told.ok
        self.degraded += told.degraded
        self.errors += told.errors

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return 1000 * float(np.percentile(self.latency, share))


def measure(size: float, *, workers: int = 2) -> Sequence[Measure]:
    """Requests that failed, and the 99th percentile while bundles are exchanged beside that of quiet times."""
    shape = max(4_000, int(ITEMS * size)), max(50, int(USERS * size)), max(3, int(TREES * min(1.0, 10 * size)))
    swaps, seconds = max(2, int(SWAPS * size)), max(0.5, SECONDS * size)
    warm, quiet, during = Asked(), Asked(), Asked()
    with stocked(*shape, versions=2) as made, serving(made.settings, workers) as served:
        users = made.shop.users

        def rest() -> None:
            for _ in range(QUIET):
                quiet.ask(served, users, seconds)

        warm.ask(served, users, seconds)
        rest()
        with ThreadPoolExecutor(1) as pool:
            took = pool.submit(_swap, served, swaps, workers)
            while not took.done():
                during.ask(served, users, seconds)
        rest()
        arrived = arrivals(addresses(made.settings), max(2, int(PRODUCTS * size)))
    asked = len(during.latency)
    found = [
        Measure(
            f"requests that failed in {swaps} swaps, {workers} workers", asked - during.ok, "requests", "requests",
            asked, None, 0, during.ok == asked, note=f"{during.degraded} degraded" if during.degraded else "",
        )
    ]  # fmt: skip
    for share in (50, 99):
        ours, normal = during.percentile(share), quiet.percentile(share)
        target = 0.5 if share == 99 else None
        held = None if target is None else normal / ours >= target
        told = f"{RATE:g} requests/s while bundles are swapped, p{share}"
        ratio = round(normal / ours, 2)
        found.append(Measure(told, round(ours, 1), "ms", "without", round(normal, 1), ratio, target, held))
    return [*found, _lasted(took.result()), arrived]


def _swap(served: Served, swaps: int, workers: int) -> list[float]:
    """Promote the two bundles in turns; seconds until every worker answers with each."""
    names, took = versions(served.settings), []
    for at in range(swaps):
        name, began = names[(at + 1) % 2], time.monotonic()
        wanted = served.loads(name) + workers
        promote(served.settings, name)
        while served.loads(name) < wanted:
            if time.monotonic() - began > PATIENCE_S:
                raise UnavailableError(f"bench: bundle {name} was not swapped in within {PATIENCE_S:.0f} s.")
            time.sleep(POLL_S)
        took.append(time.monotonic() - began)
    return took


def _lasted(took: Sequence[float]) -> Measure:
    median = float(np.median(took))
    return Measure("from promotion until all workers answer with it", round(median, 2), "s", "longest",
                   round(max(took), 2), None, None, None)  # fmt: skip
