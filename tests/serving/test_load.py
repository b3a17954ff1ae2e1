"""The load generator against the real server: it sends by the clock and hides no queue."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import psutil
import pytest
import redis

from headwater import topics
from headwater.clock import ManualClock
from headwater.errors import DataError, UnavailableError
from headwater.kafka_io import Cluster, describe, offset_bounds, partitions_of
from headwater.plan import DAY_MS
from headwater.runtime.ports import free_port
from headwater.settings import Settings, addresses
from serving.contracts import Ranked, RankedItem, Request
from serving.load import Load, run, zipf
from serving.server import THREADS, Parts, Server
from serving.telemetry import Telemetry
from serving.tracking import KafkaLog
from streaming.archive_writer import archive_consumer

NOW = 400 * DAY_MS


@dataclass(frozen=True)
class Slow:
    """Takes its time; ``lame`` gets a worse list and ``breaks`` none."""

    seconds: float
    version: str = "v1"

    def tuned(self, how) -> "Slow":
        return self

    def request(self, user_id, surface="", limit=0, exclude=(), include=(), context=None):
        return Request(user_id, surface or "home", limit or 10)

    def recommend(self, request: Request, wait_s: float | None = None) -> Ranked:
        time.sleep(self.seconds)
        if request.user_id == "breaks":
            raise ValueError("of no concern to the caller")
        degraded = ("rank",) if request.user_id == "lame" else ()
        return Ranked("r1", [RankedItem("milk", 0.5, 1, ("popular",), (), {"category": "DAIRY"})], degraded, "v1")

    def similar(self, item_id, limit=10, exclude=()) -> Ranked:
        raise DataError(f"item_id: {item_id!r} is unknown.")


@pytest.fixture
def serve(settings: Settings, clock: ManualClock, promote) -> Iterator[Callable[..., str]]:
    """``serve(seconds, kafka)`` runs a server that takes so long for a list; its address."""
    running: list[Server] = []

    def start(seconds: float, kafka: str = "127.0.0.1:1") -> str:
        promote("v1")
        store = redis.Redis.from_url("redis://127.0.0.1:1/0")
        parts = Parts(store, clock, KafkaLog(kafka), Telemetry(), lambda plan, folder: Slow(seconds))
        running.append(Server(settings, parts))
        running[0].start()
        return addresses(settings).grpc

    yield start
    for server in running:
        server.close()


def test_every_call_is_sent_on_time_though_replies_are_late_and_the_queue_shows(serve, clock):
    """Twice of what the server can do: the last call waits for half of the others, which no closed loop would tell."""
    took, seconds = 0.2, 1.5
    load = Load(2 * THREADS / took, seconds, ["ann"], track=0.0)
    told = run(serve(took), load, clock).as_dict(load)
    assert told["sent"] == told["ok"] == load.calls == 120
    assert told["latency_ms"]["p99"] > 1000 * (took + 0.8 * seconds)
    assert told["seconds"] > 1.8 * seconds
    assert told["achieved_qps"] < 0.6 * load.qps
    assert told["client_late_ms"]["p50"] < 100


@pytest.mark.parametrize("connections", [1, 3])
def test_calls_take_so_many_connections_of_their_own(serve, settings, clock, connections, monkeypatch):
    """Channels to one address share a connection unless they are told not to, and then one worker gets all calls."""
    seen: list[int] = []

    def look(self, request: Request, wait_s: float | None = None) -> Ranked:
        port = settings.grpc_port
        held = [one for one in psutil.Process().net_connections("tcp") if one.laddr.port == port and one.raddr]
        seen.append(len(held))
        return Ranked("r1", [], (), "v1")

    monkeypatch.setattr(Slow, "recommend", look)
    load = Load(50, 0.2, ["ann"], track=0.0, connections=connections)
    assert run(serve(0.0), load, clock).ok == load.calls
    assert set(seen) == {connections}


def test_replies_are_counted_by_what_they_were(serve, clock):
    load = Load(200, 0.5, ["ann", "lame", "breaks"], skew=0.0, track=0.0, seed=4)
    asked = Counter(load.drawn())
    told = run(serve(0.0), load, clock).as_dict(load)
    assert (told["ok"], told["degraded"]) == (asked["ann"] + asked["lame"], asked["lame"])
    assert told["errors"] == {"INTERNAL": asked["breaks"]}
    assert told["items"] == told["ok"]
    assert set(told["latency_ms"]) == {"p50", "p90", "p99", "p99.9"}


@pytest.mark.integration
def test_a_share_of_the_replies_is_followed_by_a_purchase(serve, clock, kafka):
    before = _events(kafka)
    load = Load(100, 0.5, ["ann"], track=0.5)
    told = run(serve(0.0, kafka), load, clock).as_dict(load)
    assert told["track_errors"] == {}
    assert 10 < told["tracked"] < 40
    assert _events(kafka) - before == told["tracked"]


def test_purchases_that_cannot_be_sent_are_counted_apart(serve, clock):
    load = Load(20, 0.2, ["ann"], track=1.0)
    told = run(serve(0.0), load, clock).as_dict(load)
    assert (told["ok"], told["errors"], told["tracked"]) == (4, {}, 0)
    assert told["track_errors"] == {"UNAVAILABLE": 4}


def test_no_server_and_no_users_are_told(clock):
    with pytest.raises(UnavailableError, match="headwater up"):
        run(f"127.0.0.1:{free_port()}", Load(1, 1, ["ann"]), clock)
    with pytest.raises(DataError, match="--users-file"):
        run("127.0.0.1:1", Load(1, 1, []), clock)
    with pytest.raises(DataError, match="Ask for fewer"):
        run("127.0.0.1:1", Load(1e6, 1e6, ["ann"]), clock)


def test_users_are_drawn_by_the_law_of_zipf():
    """The k-th of them with a frequency of k^-s over the sum of all."""
    drawn = zipf(50, 1.0, 200_000, seed=1)
    counts = np.sort(np.bincount(drawn, minlength=50))[::-1] / len(drawn)
    weights = 1 / np.arange(1, 51)
    np.testing.assert_allclose(counts, weights / weights.sum(), atol=0.004)
    even = np.bincount(zipf(50, 0.0, 200_000, seed=1), minlength=50) / 200_000
    np.testing.assert_allclose(even, 0.02, atol=0.002)
    load = Load(10, 10, ["ann", "bob"])
    assert load.drawn() == load.drawn() != replace(load, seed=1).drawn()


def _events(kafka: str) -> int:
    cluster: Cluster = describe(kafka)
    consumer = archive_consumer(kafka)
    try:
        bounds = offset_bounds(consumer, topics.EVENTS, partitions_of(cluster, topics.EVENTS))
        return sum(end for _, end in bounds.values())
    finally:
        consumer.close()
