"""The real server on a generated shop: processes of their own, what they use, and clients that ask in closed loops."""

# mypy: allow-untyped-calls
# (grpc generates its stubs without types)

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import redis
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import shop as shops
from benchmarks.parts import apply_example, log_of, running, servers, wait
from benchmarks.shop import Shop
from headwater.clock import wall_ms
from headwater.files import write_whole
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan
from headwater.runtime import process, supervisor
from headwater.runtime.ready import is_marked
from headwater.settings import Settings, addresses, get_settings
from models.bundle import FORMAT
from serving.proto.headwater.v1 import recommendation_pb2_grpc

SERVER = "serving.workers"
SURFACES = Path(__file__).with_name("shop_surfaces.toml")
_TOLD_BY = ("stage", "outcome", "method")
Milliseconds = NDArray[np.float64]


@dataclass(frozen=True)
class Stocked:
    """Servers that run, the plan that is applied, and the shop that the store holds."""

    settings: Settings
    plan: FeaturePlan
    shop: Shop


@contextlib.contextmanager
def stocked(
    n_items: int, n_users: int, trees: int, services: str | None = None, versions: int = 1
) -> Iterator[Stocked]:
    """Broker, store and bundles ``v0``, ``v1`` and so on over a generated shop; the first is the champion.

    Bundles are kept in the run folder, since a large index takes minutes to build.

    Parameters
    ----------
    services
        Python text in place of the example's feature services.
    """

    def prepare(settings: Settings) -> None:
        apply_example(settings, SURFACES.read_text(), services)

    with servers(prepare=prepare) as settings:
        plan, shop = load_plan(settings.repo), Shop(n_items, n_users, wall_ms())
        with redis.Redis.from_url(addresses(settings).redis) as client:
            client.config_set("appendonly", "no")  # a log of what is generated in seconds would fill the disk
            shops.fill(client, plan, shop)
            settings.bundles_dir.mkdir(parents=True, exist_ok=True)
            for number in range(versions):
                name = f"v{number}-{n_items}-{n_users}-{trees}-{plan.schema_hash('recommend')}-{FORMAT}"
                kept = get_settings().state_dir.resolve() / "bench" / name
                if not kept.exists():
                    shops.publish(kept, client, plan, shop, trees, seed=number)
                (settings.bundles_dir / name).symlink_to(kept)
                if not number:
                    promote(settings, name)
        yield Stocked(settings, plan, shop)


def promote(settings: Settings, version: str) -> None:
    """Name the champion, as ``headwater promote`` does."""
    write_whole(settings.bundles_dir / "aliases.json", json.dumps({"champion": version}))


def versions(settings: Settings) -> list[str]:
    """Bundles that there are, in order."""
    return sorted(path.name for path in settings.bundles_dir.iterdir() if path.is_symlink())


@dataclass(frozen=True)
class Served:
    """A server that answers, of one or several workers."""

    settings: Settings
    leader: process.Process
    seconds: float
    """From its start until it answered."""

    @property
    def address(self) -> str:
        return addresses(self.settings).grpc

    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds used so far by the server, the store, the log and this process, which asks."""
        pids = {part.name: part.pid for part in supervisor.recorded(self.settings)}
        groups = {"server": self.leader.pid, "store": pids["valkey"], "log": pids["kafka"]}
        used = {name: sum(_cpu_s(one) for one in family(pid)) * 1000 for name, pid in groups.items()}
        return {**used, "client": time.process_time() * 1000}

    def memory_mb(self) -> list[tuple[float, float]]:
        """Resident and proportional MiB of each process; the latter counts a page shared by n as an n-th."""
        found = []
        for one in family(self.leader.pid):
            with suppress(psutil.Error):
                held = one.memory_full_info()
                found.append((held.rss / 2**20, held.pss / 2**20))
        return found

    def loads(self, version: str) -> int:
        """Times that a worker took a bundle up, by the server's log: its page of metrics costs a tenth of a second."""
        lines = log_of(self.settings, SERVER).read_text().splitlines()
        return sum('"event": "loaded"' in line and f'"{version}"' in line for line in lines)

    def page(self) -> dict[tuple[str, str, str], float]:
        """Samples by metric, stage, outcome or method, and bound, added up over workers."""
        with urllib.request.urlopen(f"http://{self.settings.host}:{self.settings.metrics_port}/metrics") as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        found: dict[tuple[str, str, str], float] = {}
        for held in families:
            for one in held.samples:
                told = next((one.labels[name] for name in _TOLD_BY if name in one.labels), "")
                key = (one.name, told, one.labels.get("le", ""))
                found[key] = found.get(key, 0.0) + one.value
        return found


@contextlib.contextmanager
def serving(settings: Settings, workers: int = 1) -> Iterator[Served]:
    """``headwater serve`` as a process of its own, whose items' features are in memory."""
    several = settings.model_copy(update={"serve_workers": workers})
    began, since = time.monotonic(), time.time()
    with running(several, SERVER) as started:
        wait(lambda: is_marked(several, "serve", started.pid), started, "the server's start", 300)
        seconds = time.monotonic() - began
        wait(lambda: _mirrored(several, since), started, "the items' features", 300)
        yield Served(several, started, seconds)


def _mirrored(settings: Settings, since: float) -> bool:
    """Whether rows of all items have been put in their place since an instant, epoch s."""
    with suppress(FileNotFoundError):  # one of an earlier server was deleted meanwhile
        return any(path.stat().st_ctime > since for path in (settings.run_dir / "items").glob("*.rows"))
    return False


def family(pid: int) -> list[psutil.Process]:
    """A process and those that it has started, living."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def _cpu_s(one: psutil.Process) -> float:
    try:
        times = one.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


@contextlib.contextmanager
def connection(address: str) -> Iterator[Any]:
    """Recommendations over a connection that is shared with no other channel."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        yield recommendation_pb2_grpc.RecommendationServiceStub(channel).Recommend


def closed_loop(ask: Any, requests: Sequence[Any]) -> Milliseconds:
    """Send one request after another; milliseconds of each (n_requests,)."""
    times = np.empty(len(requests))
    for at, request in enumerate(requests):
        began = time.perf_counter()
        ask(request, timeout=30)
        times[at] = (time.perf_counter() - began) * 1000
    return times


def closed_loops(asks: Sequence[Any], requests: Sequence[Any], seconds: float) -> tuple[int, float]:
    """Send the requests over and over by all connections at once; how many were answered, and in how many seconds.

    All stop at one time. The kernel deals connections to workers as it happens to, and after as many requests of each
    the one that has a worker to itself would be done long before those that share one.
    """
    began = time.perf_counter()

    def loop(number: int) -> int:
        first, answered = number * len(requests) // len(asks), 0
        while time.perf_counter() - began < seconds:
            asks[number](requests[(first + answered) % len(requests)], timeout=30)
            answered += 1
        return answered

    with ThreadPoolExecutor(len(asks)) as pool:
        answered = sum(pool.map(loop, range(len(asks))))
    return answered, time.perf_counter() - began


def spent(before: Mapping[str, float], after: Mapping[str, float], requests: int) -> dict[str, float]:
    """CPU milliseconds a request by group of processes, and of all."""
    each = {name: (after[name] - before[name]) / requests for name in before}
    return {**each, "all": sum(each.values())}
