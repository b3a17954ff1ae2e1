"""Parts that stop, hang, throw or are damaged: full lists in time, marked, and whole again once the part is back."""

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import redis
from confluent_kafka import Consumer, TopicPartition
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater import topics
from headwater.errors import UnavailableError
from headwater.online.connect import connect
from headwater.plan import DAY_MS
from headwater.runtime import kafka as kafka_server
from headwater.runtime import process
from headwater.runtime import valkey as valkey_server
from headwater.runtime.ports import free_port
from headwater.settings import addresses
from serving import guard as guards
from serving.availability import StoredAvailability, Withdrawn, withdraw
from serving.client import Client
from serving.guard import Guard
from serving.impressions import ImpressionLog
from serving.rulebook import Ruled
from serving.rules import Rule, Rules
from serving.server import Parts, Server
from serving.sources import Fixed
from serving.spill import Spill
from serving.state import Remembering
from serving.telemetry import Telemetry
from serving.tracking import KafkaLog

HOST = "127.0.0.1"
GONE = redis.Redis(port=1)
DEADLINE_MS = 2_000
"""Of the tests' surfaces: these machines stand still for longer than 150 ms at times."""


@contextlib.contextmanager
def serving(settings, clock, make, kafka=None, close=lambda: None):
    """A server in this process, and a client of it."""
    telemetry = Telemetry()
    log = kafka or KafkaLog(f"{HOST}:1")
    server = Server(settings, Parts(GONE, clock, log, telemetry, lambda plan, folder: make(telemetry), close))
    server.start()
    with Client(addresses(settings).grpc) as client:
        yield client, telemetry
    server.close()


@pytest.fixture
def patient(surfaces):
    return {name: one.model_copy(update={"deadline_ms": DEADLINE_MS}) for name, one in surfaces.surfaces.items()}


class Valkey:
    """A server of one's own, to be stopped."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        self.start()

    def start(self):
        self.process = process.spawn(valkey_server.command(self.folder, HOST, self.port), self.folder / "log")
        deadline = time.monotonic() + 60
        while not valkey_server.is_ready(self.url):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self):
        process.end(self.process)

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)


@pytest.fixture
def own_valkey(tmp_path, put):
    server = Valkey(tmp_path / "valkey")
    with redis.Redis.from_url(server.url) as client:
        put(client, "user_item", {("u1", "i5"): 2, ("u1", "i7"): 1})
        withdraw(client, "shop", ["i9"])
    yield server
    with contextlib.suppress(ProcessLookupError):
        server.resume()
    server.stop()


@pytest.mark.integration
@pytest.mark.parametrize(("leave", "come_back"), [("stop", "start"), ("pause", "resume")])
def test_without_the_store(settings, clock, promote, funnel, patient, own_valkey, until, leave, come_back):
    store = connect(own_valkey.url, socket_connect_timeout=0.2, socket_timeout=0.5)
    promote("v1")
    with serving(settings, clock, lambda told: funnel(store, surfaces=patient, telemetry=told)) as (client, _):

        def ask():
            started = time.monotonic()
            ranked = client.recommend("u1", "discover", limit=20)
            shown = {item.item_id for item in ranked.items}
            assert len(ranked.items) == 20
            assert not shown & {"i5", "i7", "i9"}  # seen, and withdrawn
            return ranked.degraded, time.monotonic() - started

        until(lambda: ask()[0] == (), "a whole list")
        getattr(own_valkey, leave)()
        outage = [ask() for _ in range(100)]
        getattr(own_valkey, come_back)()
        assert {degraded for degraded, _ in outage[2:]} == {("user_state", "hydrate")}
        assert max(took for _, took in outage) < DEADLINE_MS / 1000
        assert sum(took for _, took in outage) < 100 * DEADLINE_MS / 1000 / 4  # few of them waited
        until(lambda: ask()[0] == (), "the store")


class Slow:
    """A source of another process: it hangs or throws while it is told to."""

    waits = True

    def __init__(self):
        self.asked = 0
        self.back = threading.Event()
        self.back.set()
        self.error = None

    def propose(self, user, n):
        self.asked += 1
        self.back.wait(60)
        if self.error is not None:
            raise self.error
        return np.arange(40, 40 + n, dtype=np.int32)


@pytest.fixture
def slow():
    yield (made := Slow())
    made.back.set()


@pytest.fixture
def with_slow(funnel, bundle, surfaces, slow):
    """``with_slow(telemetry)``: a funnel with one more source, on a store that is not there."""
    home = surfaces.surfaces["home"]
    home = home.model_copy(update={"sources": {**home.sources, "slow": 5}, "deadline_ms": 400})

    def make(telemetry, **parts):
        sources = {**bundle.sources, "slow": slow}
        whole = funnel(GONE, surfaces={"home": home}, bundle=replace(bundle, sources=sources), telemetry=telemetry)
        return replace(whole, **parts)

    return make


def test_a_source_that_hangs_is_left_out_and_asked_again_once_it_is_back(
    settings, clock, promote, with_slow, slow, until
):
    promote("v1")
    with serving(settings, clock, with_slow) as (client, telemetry):

        def ask():
            ranked = client.recommend("u1")
            assert len(ranked.items) == 10
            return "source.slow" in ranked.degraded

        until(lambda: not ask(), "the source")
        slow.back.clear()
        before = slow.asked
        assert all(ask() for _ in range(50))
        assert slow.asked - before <= 2  # one request, and one that tries
        told = telemetry.registry.get_sample_value
        assert told("headwater_degraded_total", {"stage": "source.slow", "reason": "late"}) == 1
        assert told("headwater_degraded_total", {"stage": "source.slow", "reason": "down"}) >= 49
        slow.back.set()
        until(lambda: not ask(), "the source")


@pytest.mark.parametrize("error", [ValueError("a bug"), UnavailableError("other process: gone"), OSError("reset")])
def test_a_source_that_throws_is_left_out_until_it_does_not(settings, clock, promote, with_slow, slow, until, error):
    promote("v1")
    with serving(settings, clock, with_slow) as (client, _):
        slow.error = error
        told = [client.recommend("u1") for _ in range(20)]
        assert {len(ranked.items) for ranked in told} == {10}
        assert all("source.slow" in ranked.degraded for ranked in told)
        slow.error = None
        until(lambda: "source.slow" not in client.recommend("u1").degraded, "the source")


def test_sources_that_wait_work_while_the_others_do(with_slow, slow, bundle):
    """Two of 0.2 s each are done in less than 0.4."""

    class Sleepy(Slow):
        def propose(self, user, n):
            time.sleep(0.2)
            return super().propose(user, n)

    whole = with_slow(Telemetry())
    sources = {**bundle.sources, "slow": Sleepy(), "other": Sleepy()}
    home = whole.surfaces["home"]
    home = home.model_copy(update={"sources": {**home.sources, "other": 5}, "deadline_ms": 60_000})
    whole = replace(whole, bundle=replace(bundle, sources=sources), surfaces={"home": home})
    trips = []
    for _ in range(3):
        started = time.monotonic()
        run = whole.run(whole.request("u1"), guards.Deadline.after(60))
        trips.append(time.monotonic() - started)
        assert len(run.proposals["slow"]) == len(run.proposals["other"]) == 5
    assert 0.2 <= min(trips) < 0.4


def test_a_caller_with_less_time_than_the_surface_has_is_answered_in_it(with_slow, slow):
    whole = with_slow(Telemetry())
    slow.back.clear()
    started = time.monotonic()
    ranked = whole.recommend(whole.request("u1"), 0.1)
    assert time.monotonic() - started < 0.4  # the surface's
    assert len(ranked.items) == 10
    assert "source.slow" in ranked.degraded


def test_a_caller_without_any_time_gets_what_is_popular(funnel):
    whole = funnel(GONE)
    ranked = whole.recommend(whole.request("u1", exclude=["i0"]), 0.0)
    assert [item.item_id for item in ranked.items] == [f"i{n}" for n in range(1, 11)]
    assert {"user_state", "source.two_tower", "hydrate", "rerank"} <= set(ranked.degraded)


class Away:
    """Stands before a part and, while it is in ``gone``, refuses or hangs."""

    def __init__(self, part, name, gone):
        self._part, self._name, self._gone = part, name, gone

    def __getattr__(self, attribute):
        inner = getattr(self._part, attribute)
        if not callable(inner):
            return inner

        def call(*arguments):
            trouble = self._gone.get(self._name)
            if trouble == "hangs":
                time.sleep(0.05)
            if trouble is not None:
                raise UnavailableError(f"{self._name}: away") if trouble != "throws" else RuntimeError("a bug")
            return inner(*arguments)

        return call


PARTS = ("state", "features", "smembers", "two_tower", "popular", "ranker", "index", "reasons")
ids = st.lists(st.integers(0, 70).map(lambda n: f"i{n}"), max_size=30)


@pytest.mark.integration
@given(
    gone=st.dictionaries(st.sampled_from(PARTS), st.sampled_from(["refuses", "hangs", "throws"])),
    exclude=ids, limit=st.integers(1, 70), surface=st.sampled_from(["home", "discover"]),
    wait_s=st.sampled_from([None, 0.0, 0.02, float("inf")]),
)  # fmt: skip
@tries(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_laws_of_every_list_whatever_is_gone(
    funnel, bundle, shop, valkey_client, put, gone, exclude, limit, surface, wait_s
):
    """As long as it can be, nothing twice, nothing excluded, withdrawn, ruled out, or seen where seen is hidden."""
    put(valkey_client, "user_item", {("u1", "i5"): 2, ("u1", "i7"): 1}, clock_of(funnel(valkey_client)) - DAY_MS)
    withdraw(valkey_client, "shop", ["i9", "i11"])
    troubles: dict[str, str] = {}

    def away(part, name):
        return Away(part, name, troubles)

    plain, guard = funnel(valkey_client), Guard("online store")
    withdrawn = Withdrawn(away(valkey_client, "smembers"), "shop", guard)
    sources = {**bundle.sources, "two_tower": away(bundle.sources["two_tower"], "two_tower")}
    sources["popular"] = away(Fixed(bundle.popular), "popular")
    broken = replace(
        bundle, sources=sources, ranker=away(bundle.ranker, "ranker"), index=away(bundle.index, "index")
    )  # fmt: skip
    whole = replace(
        plain, bundle=broken, store=guard,
        state=Remembering(away(plain.state, "state")), features=away(plain.features, "features"),
        reasons=away(plain.reasons, "reasons"),
        availability=StoredAvailability(withdrawn, shop),
        rules=Hides(shop, ["i20", "i21"]),
    )  # fmt: skip
    whole.recommend(whole.request("u1"))  # read once, while all is well
    withdrawn._read_at = float("-inf")
    troubles.update(gone)
    ranked = whole.recommend(whole.request("u1", surface, limit, exclude), wait_s)
    shown = [item.item_id for item in ranked.items]
    allowed = set(shop.ids) - set(exclude) - {"i9", "i11", "i20", "i21"}
    allowed -= {"i5", "i7"} if surface == "discover" else set()
    assert len(shown) == len(set(shown)) == min(limit, len(allowed))
    assert set(shown) <= allowed


def clock_of(whole):
    return whole.clock.now_ms()


class Hides:
    """A rule book that hides some items."""

    def __init__(self, shop, items):
        self._ruled = Ruled.on(Rules(rules=(Rule(name="gone", do="hide", items=tuple(items)),)), shop)

    def now(self):
        return self._ruled


@pytest.mark.integration
def test_impressions_of_an_outage_of_kafka_are_sent_in_order_when_it_is_back(
    settings, clock, promote, funnel, tmp_path, until
):
    folder, port = tmp_path / "kafka", free_port()
    bootstrap = f"{HOST}:{port}"

    def start():
        broker = process.spawn(kafka_server.command(folder, HOST, port, heap_mb=320), folder / "kafka.log")
        until(lambda: kafka_server.is_ready(bootstrap), "Kafka", 180)
        return broker

    broker = start()
    kafka_server.create_topics(bootstrap, partitions=1, names=[topics.IMPRESSIONS])
    log, counted = KafkaLog(bootstrap), Telemetry()
    sink = ImpressionLog(log, counted, spill=Spill(tmp_path / "spill"))
    promote("v1")
    with serving(settings, clock, lambda told: funnel(GONE, impressions=sink, telemetry=told), log, sink.close) as (
        client,
        _,
    ):
        shown = [client.recommend("u1").request_id for _ in range(3)]
        until(lambda: counted.impressions("logged") == 3, "the first three", 60)
        process.end(broker)
        started = time.monotonic()
        replies = [client.recommend("u1") for _ in range(20)]
        assert time.monotonic() - started < 20  # none waited for Kafka
        assert {len(reply.items) for reply in replies} == {10}
        shown += [reply.request_id for reply in replies]
        until(lambda: counted.impressions("spilled") == 20, "the file", 60)
        broker = start()
        until(lambda: counted.impressions("logged") == 23, "what was kept", 120)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topics.IMPRESSIONS, 0, 0)])
    told = [json.loads(message.value())["request_id"] for message in consumer.consume(len(shown), timeout=60)]
    consumer.close()
    process.end(broker)
    assert told == shown
    assert counted.impressions("dropped") == counted.impressions("failed") == 0
