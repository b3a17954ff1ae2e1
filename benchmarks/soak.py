"""Ten minutes of load: whether the server's memory stays as it is once all has been touched."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.served import serving, stocked
from headwater.bench import Measure
from headwater.clock import SystemClock
from serving.load import Load, run

ITEMS, USERS, TREES, SKEW, WORKERS = 100_000, 2_500, 300, 1.0, 2
RATE, SECONDS, WARM_S, CONNECTIONS = 20.0, 600.0, 60.0, 4
LOOKS = 60
"""Times that memory is looked at."""
MOST = 1.02


def measure(size: float) -> Sequence[Measure]:
    """Proportional memory of all of the server's processes, the last tenth of the load over the first."""
    shape = max(4_000, int(ITEMS * size)), max(50, int(USERS * size)), max(3, int(TREES * size))
    seconds, held = max(5.0, SECONDS * size), []
    with stocked(*shape) as made, serving(made.settings, WORKERS) as served, ThreadPoolExecutor(1) as pool:

        def load(lasts: float) -> Load:
            return Load(RATE, lasts, made.shop.users, SKEW, track=0.2, seed=1, connections=CONNECTIONS)

        run(served.address, load(max(2.0, WARM_S * size)), SystemClock())
        asked = load(seconds)
        told = pool.submit(run, served.address, asked, SystemClock())
        while not told.done():
            held.append(sum(proportional for _, proportional in served.memory_mb()))
            time.sleep(seconds / LOOKS)
        failed = asked.calls - told.result().ok
    tenth = max(1, len(held) // 10)
    before, after = float(np.median(held[:tenth])), float(np.median(held[-tenth:]))
    grown = after / before
    return [
        Measure(
            f"memory of {WORKERS} workers after {seconds:.0f} s of {RATE:g} requests/s over before, at most {MOST}",
            round(grown, 4), "times", "MiB before", round(before), None, MOST, grown <= MOST,
            (round(min(held), 1), round(max(held), 1)), note=f"{after:.0f} MiB after; spread over {len(held)} looks",
        ),
        Measure("calls that failed meanwhile", failed, "calls", "calls", asked.calls, None, 0, not failed),
    ]  # fmt: skip
