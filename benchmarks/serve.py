"""A list of 20 from a million products over gRPC: what it costs, where the time goes, how many a second.

``headwater serve`` runs as a process of its own, with a real store and a real log, on a generated shop
(:mod:`benchmarks.shop`): 59 features of the example's definitions for some 500 candidates, trees of 63 leaves. Users
come as skewed as in the demo. Beside it the same funnel made of Feast's SDK, ``Booster.predict`` and numpy
(:mod:`benchmarks.straightforward`), in the same rounds and for the same users.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import redis

from benchmarks.served import (
    Milliseconds,
    Served,
    Stocked,
    closed_loop,
    closed_loops,
    connection,
    serving,
    spent,
    stocked,
)
from benchmarks.straightforward import Straightforward, straightforward
from headwater.bench import Measure, Sample
from headwater.clock import SystemClock
from models.bundle import load_bundle
from serving.build import build_recommender
from serving.load import Load, run, zipf
from serving.proto.headwater.v1 import recommendation_pb2
from serving.run import Run

ITEMS, USERS, TREES = 1_000_000, 2_500, 300
SKEW = 1.0
ROUNDS, ASKED, SLOW_ASKED, WARM = 5, 300, 6, 100
RATES, SECONDS, CONNECTIONS = (50, 100, 150, 200, 300, 400), 8.0, 8
MOST_CPU_MS, MOST_P50_MS, TIMES_LESS = 7.0, 6.0, 10
BUSY_P99_MS, LEAST_RATE = 50.0, 150
BASELINE = "Feast's SDK, Booster.predict, numpy"
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
Page = Mapping[tuple[str, str, str], float]


def measure(size: float) -> Sequence[Measure]:
    """CPU and latency of a request at one connection, by stage; memory; latency at rising rates with two workers."""
    effort = min(1.0, 10 * size)  # a tenth of the shop is measured as thoroughly as the whole
    seconds = max(0.5, SECONDS * effort)
    shape = max(4_000, int(ITEMS * size)), max(50, int(USERS * size)), max(3, int(TREES * effort))
    with stocked(*shape) as made:
        users = [made.shop.users[at] for at in zipf(made.shop.n_users, SKEW, max(50, int(ASKED * effort)), seed=1)]
        found: list[Measure] = []
        with serving(made.settings) as one:
            found += _beside(made, one, users, max(2, int(SLOW_ASKED * effort)))
            found += _memory("one worker", one)
            alone = _saturated(one, users, seconds)
        with serving(made.settings, workers=2) as two:
            both = _saturated(two, users, seconds)
            found += [*_memory("two workers", two), *_step(alone, both)]
            found += _rising(two, made.shop.users, seconds)
        return found


def _beside(made: Stocked, one: Served, users: Sequence[str], slow: int) -> Iterator[Measure]:
    """Both funnels in turns, one request at a time."""
    requests = [recommendation_pb2.RecommendRequest(user_id=user) for user in users]
    times, cpu, wall_ms, cpu_ms = [], [], [], []
    with _straightforward(made, list(dict.fromkeys(users))[:slow]) as (other, runs), connection(one.address) as ask:
        closed_loop(ask, (requests * WARM)[:WARM])
        differ = sum(_shown(other, ours) != [item.item_id for item in ours.ranked.items] for ours in runs)
        before = one.page()
        for _ in range(ROUNDS):
            used = one.cpu_ms()
            times.append(closed_loop(ask, requests))
            cpu.append(spent(used, one.cpu_ms(), len(requests)))
            took = _timed(other, runs)
            wall_ms.append(took[0])
            cpu_ms.append(took[1])
        after = one.page()
    theirs = Sample(cpu_ms)
    for group in cpu[0]:
        yield _cost(group, Sample([each[group] for each in cpu]), theirs)
    yield from _latencies(np.concatenate(times), float(np.median(wall_ms)))
    yield from _stages(before, after)
    yield Measure("lists that differ from the baseline's", differ, "lists", "lists", len(runs), None, 0, not differ)


@contextlib.contextmanager
def _straightforward(made: Stocked, users: Sequence[str]) -> Iterator[tuple[Straightforward, Sequence[Run]]]:
    """The baseline, and what our funnel reads and shows these users, made in this process."""
    funnel = build_recommender(made.settings)
    runs = [funnel.run(funnel.request(user)) for user in users]
    bundle = load_bundle(made.settings.bundles_dir / funnel.version)
    with straightforward(made.plan, bundle, funnel.surfaces["home"], funnel.names, runs) as other:
        yield other, runs


def _shown(other: Straightforward, one: Run) -> list[str]:
    """The baseline's list for the instant of ours."""
    assert one.features is not None
    return other.recommend(one.request.user_id, one.features.now)


def _timed(other: Straightforward, runs: Sequence[Run]) -> tuple[float, float]:
    """Milliseconds of a request by the clock, and of CPU, that of Feast's Redis included."""
    with redis.Redis.from_url(other.url) as client:
        server, began, used = _server_ms(client), time.perf_counter(), time.process_time()
        for one in runs:
            _shown(other, one)
        took, cpu = time.perf_counter() - began, time.process_time() - used
        return 1000 * took / len(runs), (1000 * cpu + _server_ms(client) - server) / len(runs)


def _server_ms(client: redis.Redis) -> float:
    used: Any = client.info("cpu")
    return 1000 * (float(used["used_cpu_user"]) + float(used["used_cpu_sys"]))


def _cost(group: str, ours: Sample, theirs: Sample) -> Measure:
    """CPU of a group of processes; of all together there are two targets."""
    ratio = round(theirs.median / ours.median, 2)
    if group != "all":
        return Measure(f"a request, {group}", round(ours.median, 3), "CPU ms", BASELINE, round(theirs.median, 1), ratio,
                       None, None, ours.spread)  # fmt: skip
    held = ratio >= TIMES_LESS and ours.median <= MOST_CPU_MS
    return Measure(f"a request, all told, at most {MOST_CPU_MS:g}", round(ours.median, 3), "CPU ms", BASELINE,
                   round(theirs.median, 1), ratio, TIMES_LESS, held, ours.spread)  # fmt: skip


def _latencies(times: Milliseconds, theirs: float) -> Iterator[Measure]:
    found = {share: float(np.percentile(times, share)) for share in PERCENTILES}
    most = {50.0: MOST_P50_MS, 99.0: 2 * found[50.0]}
    for share, took in found.items():
        told = {50.0: f", at most {MOST_P50_MS:g}", 99.0: ", at most twice p50"}.get(share, "")
        yield Measure(
            f"one connection, p{share:g}{told}", round(took, 2), "ms", f"{BASELINE}, median, without gRPC",
            round(theirs, 1), round(theirs / took, 1), None, took <= most[share] if share in most else None,
        )  # fmt: skip


def _stages(before: Page, after: Page) -> Iterator[Measure]:
    """What the server's own histograms say; percentiles are interpolated within a bucket."""
    name = "headwater_stage_seconds"
    stages = [stage for metric, stage, _ in after if metric == f"{name}_count"]
    spent_ms = {stage: 1000 * _mean(before, after, name, stage) for stage in stages}
    whole = 1000 * _mean(before, after, "headwater_call_seconds", "Recommend")
    for stage, took in {**spent_ms, "Recommend": whole}.items():
        metric = name if stage in spent_ms else "headwater_call_seconds"
        told = ", ".join(f"p{share:g} {_quantile(before, after, metric, stage, share):.2f}" for share in PERCENTILES)
        yield Measure(f"stage {stage}, mean" if stage in spent_ms else "the call in the server, mean", round(took, 3),
                      "ms", "the call", round(whole, 2), None, None, None, note=told)  # fmt: skip


def _mean(before: Page, after: Page, metric: str, label: str) -> float:
    total, count = (_more(before, after, (f"{metric}_{part}", label, "")) for part in ("sum", "count"))
    return total / max(count, 1.0)


def _quantile(before: Page, after: Page, metric: str, label: str, share: float) -> float:
    """Milliseconds, as Prometheus' histogram_quantile has it."""
    bounds = [bound for name, held, bound in after if name == f"{metric}_bucket" and held == label]
    edges = np.array([0.0, *map(float, bounds[:-1])])
    counts = np.array([0.0, *(_more(before, after, (f"{metric}_bucket", label, bound)) for bound in bounds)])
    return 1000 * float(np.interp(share / 100 * counts[-1], counts[:-1], edges))


def _more(before: Page, after: Page, key: tuple[str, str, str]) -> float:
    return after[key] - before.get(key, 0.0)


def _memory(name: str, served: Served) -> Iterator[Measure]:
    """Each process, largest first; proportional memory counts a page that n processes map as an n-th in each."""
    held = sorted(served.memory_mb(), reverse=True)
    own = sum(proportional for _, proportional in held)
    told = ", ".join(f"{resident:.0f}" for resident, _ in held)
    yield Measure(f"{name}, memory", round(own), "MiB proportional", "resident, added up",
                  round(sum(resident for resident, _ in held)), None, None, None,
                  note=f"resident by process: {told}; answers {served.seconds:.1f} s after its start")  # fmt: skip


def _saturated(served: Served, users: Sequence[str], seconds: float) -> tuple[float, dict[str, float]]:
    """Requests a second of as many clients as there are connections, each asking as soon as it is answered; CPU."""
    requests = [recommendation_pb2.RecommendRequest(user_id=user) for user in users]
    with contextlib.ExitStack() as stack:
        asks = [stack.enter_context(connection(served.address)) for _ in range(CONNECTIONS)]
        closed_loops(asks, requests, seconds / 4)
        used = served.cpu_ms()
        answered, took = closed_loops(asks, requests, seconds)
        return answered / took, spent(used, served.cpu_ms(), answered)


def _step(alone: tuple[float, dict[str, float]], both: tuple[float, dict[str, float]]) -> Iterator[Measure]:
    """What a second worker brings, on a machine that client, store and log share with them."""
    rates, costs = (alone[0], both[0]), (alone[1]["all"], both[1]["all"])
    yield Measure(f"two workers, {CONNECTIONS} clients in closed loops", round(rates[1]), "requests/s", "one worker",
                  round(rates[0]), round(rates[1] / rates[0], 2), None, None)  # fmt: skip
    yield Measure("two workers, a request, all told", round(costs[1], 3), "CPU ms", "one worker", round(costs[0], 3),
                  round(costs[0] / costs[1], 2), None, None)  # fmt: skip


def _rising(served: Served, users: Sequence[str], seconds: float) -> Iterator[Measure]:
    """Calls sent by the clock, each latency from when the call was due; the load generator is on the same cores."""
    reached = 0.0
    for rate in RATES:
        used = served.cpu_ms()
        load = Load(rate, seconds, users, skew=SKEW, track=0.0, seed=rate, connections=CONNECTIONS)
        told = run(served.address, load, SystemClock())
        cpu = spent(used, served.cpu_ms(), max(told.ok, 1))
        p50, p90, p99, last = (1000 * float(np.percentile(told.latency, share)) for share in PERCENTILES)
        kept = p99 <= BUSY_P99_MS and told.ok == load.calls and told.degraded <= load.calls / 100
        reached = max(reached, rate if kept else 0)
        note = f"p50 {p50:.1f}, p90 {p90:.1f}, p99.9 {last:.1f}; {told.ok} of {load.calls} answered, "
        note += f"{told.degraded} degraded, {cpu['all']:.1f} CPU ms a request, {cpu['client']:.1f} of it the client's"
        yield Measure(f"{rate} requests/s, p99", round(p99, 1), "ms", f"{BUSY_P99_MS:g} ms", BUSY_P99_MS, None,
                      None, None, note=note)  # fmt: skip
        if not kept and rate >= LEAST_RATE:  # more would only show how long a queue grows
            break
    yield Measure(
        f"highest of these rates with p99 under {BUSY_P99_MS:g} ms", reached, "requests/s", "wanted", LEAST_RATE,
        round(reached / LEAST_RATE, 2), 1.0, reached >= LEAST_RATE, note="two workers, load generator included",
    )  # fmt: skip
