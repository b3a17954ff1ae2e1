"""The real server over gRPC: features, tracking, health, reflection, swaps, drain."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis
from confluent_kafka import Consumer, TopicPartition
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from headwater import topics
from headwater.clock import ManualClock
from headwater.errors import DataError, HeadwaterError, ModelError, ResourceError, UnavailableError
from headwater.events import Event
from headwater.plan import DAY_MS, FeaturePlan
from headwater.settings import Settings, addresses
from serving import generate
from serving.client import Client
from serving.contracts import Explanation, Moved, Ranked, RankedItem, Request
from serving.impressions import ImpressionLog
from serving.live import Live
from serving.proto.headwater.v1 import event_pb2, event_pb2_grpc
from serving.server import EVENTS, RECOMMENDATIONS, THREADS, Parts, Server
from serving.telemetry import Telemetry
from serving.tracking import KafkaLog, Taken
from serving.turns import MOST_WAITING, Calls

NOW = 400 * DAY_MS


@dataclass(frozen=True)
class Echo:
    """Stands in for a funnel: its bundle's name is its only item."""

    version: str

    def tuned(self, how) -> "Echo":
        return self

    def request(self, user_id, surface="", limit=0, exclude=(), include=(), context=None):
        if not user_id:
            raise DataError("user_id: empty. Name who is asking.")
        return Request(user_id, surface or "home", limit or 10, frozenset(exclude), tuple(include), dict(context or {}))

    def recommend(self, request: Request, wait_s: float | None = None) -> Ranked:
        if request.user_id == "breaks":
            raise ValueError("secret of the house")
        item = RankedItem(self.version, 0.5, 1, ("popular",), ("why",), {"name": "Milk"})
        return Ranked("r1", [item], (), self.version)

    def search(self, user_id, query, limit=0, exclude=(), require=None, context=None, wait_s=None) -> Ranked:
        if not query:
            raise DataError("query: empty. Type what is wanted.")
        told = {
            "user_id": user_id, "query": query, "limit": str(limit), "exclude": str([*exclude]),
            "require": str(dict(require)), "context": str(dict(context)),
        }  # fmt: skip
        return Ranked("r2", [RankedItem("found", 0.5, 1, ("bm25",), (), told)], (), self.version)

    def similar(self, item_id, limit=10, exclude=()) -> Ranked:
        raise DataError(f"item_id: {item_id!r} is unknown.")

    def explain(self, request, item_id) -> Explanation:
        moved = (Moved("f", 1.5, 0.5), Moved("g", np.nan, -0.25))
        return Explanation(item_id, "shown", 2, (f"{request.user_id} asks for {request.limit}", repr(request)), moved)


def echo(plan: FeaturePlan, folder: Path) -> Echo:
    if folder.name == "broken":
        raise ModelError("broken: its feature schema is not the registry's. Train a new bundle.")
    return Echo(folder.name)


@pytest.fixture
def start(settings: Settings, clock: ManualClock) -> Iterator[Callable[..., Client]]:
    """``start(kafka=, redis=)`` runs a server in this process and returns a client of it."""
    opened: list[Client | Server] = []

    def run(kafka: str = "127.0.0.1:1", store: str = "redis://127.0.0.1:1/0") -> Client:
        parts = Parts(redis.Redis.from_url(store), clock, KafkaLog(kafka), Telemetry(), echo)
        server = Server(settings, parts)
        server.start()
        client = Client(addresses(settings).grpc)
        opened.extend((client, server))
        return client

    yield run
    for each in opened:
        each.close()


def health_of(settings: Settings, service: str) -> str:
    with grpc.insecure_channel(addresses(settings).grpc) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def test_generated_code_is_what_the_protobuf_files_say() -> None:
    assert generate.main(["--check"]) == 0


def test_the_protobuf_event_has_the_fields_of_the_envelope() -> None:
    from headwater.events import EVENT_SCHEMA

    assert [field.name for field in event_pb2.Event.DESCRIPTOR.fields] == EVENT_SCHEMA.names


def test_without_a_bundle_the_server_answers_what_it_can_and_names_the_next_step(start, settings) -> None:
    client = start()
    with pytest.raises(ModelError, match="headwater train"):
        client.recommend("u1")
    assert health_of(settings, RECOMMENDATIONS) == "NOT_SERVING"
    assert health_of(settings, EVENTS) == "SERVING"


def test_a_promoted_bundle_is_served_without_a_restart(start, settings, promote, until) -> None:
    client = start()
    promote("v1")
    until(lambda: health_of(settings, RECOMMENDATIONS) == "SERVING", "the first bundle")
    assert client.recommend("u1").items[0].item_id == "v1"
    assert health_of(settings, "") == "SERVING"


def test_a_bundle_that_is_refused_leaves_the_one_before_in_force(settings, promote) -> None:
    live = Live(settings, echo)
    promote("v1")
    assert live.refresh()
    promote("broken")
    assert not live.refresh()
    assert live.recommender.version == "v1"
    promote("v2")
    assert live.refresh()
    assert live.recommender.version == "v2"


def test_where_nothing_was_applied_features_name_the_next_step(settings, start) -> None:
    (settings.repo / "data" / "registry.db").unlink()
    with pytest.raises(ModelError, match="apply"):
        start().features("recommend", {"user_id": "u1"})


def test_a_first_bundle_that_is_refused_says_why(settings, promote) -> None:
    live = Live(settings, echo)
    promote("broken")
    live.refresh()
    with pytest.raises(ModelError, match="feature schema"):
        _ = live.recommender


def test_no_request_fails_while_bundles_are_swapped(start, settings, promote, until) -> None:
    promote("v0")
    client = start()
    seen: set[str] = set()
    stop = threading.Event()

    def ask() -> int:
        asked = 0
        while not stop.is_set():
            reply = client.recommend("u1")
            assert reply.items[0].item_id == reply.bundle_version
            seen.add(reply.bundle_version)
            asked += 1
        return asked

    with ThreadPoolExecutor(2) as pool:
        askers = [pool.submit(ask) for _ in range(2)]
        for version in ("v1", "v2"):
            promote(version)
            until(lambda version=version: version in seen, version)
        stop.set()
        assert all(asker.result() > 0 for asker in askers)
    assert seen == {"v0", "v1", "v2"}


def test_where_too_many_calls_wait_some_make_way_for_those_behind_them(start, promote, monkeypatch, until) -> None:
    made: list[Calls] = []

    class Watched(Calls):
        def __init__(self, threads: int) -> None:
            super().__init__(threads)
            made.append(self)

    monkeypatch.setattr("serving.server.Calls", Watched)
    promote("v1")
    client = start()
    gate, given, whole = threading.Event(), [], Echo.recommend

    def held(self, request, wait_s=None) -> Ranked:
        given.append(wait_s)
        assert not wait_s or gate.wait(30)
        return whole(self, request, wait_s)

    monkeypatch.setattr(Echo, "recommend", held)
    with ThreadPoolExecutor(3 * MOST_WAITING) as pool:
        asked = [pool.submit(client.recommend, f"u{number}") for number in range(3 * MOST_WAITING)]
        until(lambda: made[0].waiting == 3 * MOST_WAITING - THREADS, "all calls have come")
        assert len(given) == THREADS
        assert all(given)
        gate.set()
        replies = [each.result(30) for each in asked]
    hurried = [reply for reply in replies if "overload" in reply.degraded]
    assert len(hurried) == given.count(0.0)
    assert MOST_WAITING <= len(hurried) < 2 * MOST_WAITING
    assert all(reply.items for reply in replies)
    assert "overload" not in client.recommend("u1").degraded


def test_a_bad_request_is_refused_by_field_and_a_bug_tells_nothing_of_the_inside(start, promote) -> None:
    promote("v1")
    client = start()
    with pytest.raises(DataError, match="user_id"):
        client.recommend("")
    with pytest.raises(HeadwaterError, match="internal error") as told:
        client.recommend("breaks")
    assert "secret" not in str(told.value)


def test_a_search_comes_over_the_wire_as_it_was_given(start, promote) -> None:
    promote("v1")
    client = start()
    asked = {"limit": 3, "exclude": ["a"], "require": {"audience": "public"}, "context": {"page": "2"}}
    found = client.search("u1", "whole milk", **asked)
    told = {"user_id": "u1", "query": "whole milk", **{name: str(value) for name, value in asked.items()}}
    assert found.items[0].attributes == told
    with pytest.raises(DataError, match="query"):
        client.search("u1", "")
    with pytest.raises(DataError, match="surrogates"):
        client.search("u1", "half \ud800 a letter")


def test_an_explanation_comes_over_the_wire_as_it_was_given(start, settings, promote) -> None:
    promote("v1")
    start()
    with Client(addresses(settings).grpc) as client:
        asked = {"surface": "basket", "limit": 3, "exclude": ["x"], "include": ["a", "b"], "context": {"basket": "a,b"}}
        found = client.explain("u1", "a", **asked)
    assert (found.item_id, found.stage, found.position) == ("a", "shown", 2)
    request = Request("u1", "basket", 3, frozenset(["x"]), ("a", "b"), {"basket": "a,b"})
    assert found.lines == ("u1 asks for 3", repr(request)), "the list is the one that was asked for"
    assert [(one.name, one.contribution) for one in found.moved] == [("f", 0.5), ("g", -0.25)]
    assert found.moved[0].value == 1.5
    assert np.isnan(found.moved[1].value)


def test_reflection_describes_the_services(start, settings) -> None:
    start()
    with grpc.insecure_channel(addresses(settings).grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert RECOMMENDATIONS in database.get_services()
        method = DescriptorPool(database).FindServiceByName(RECOMMENDATIONS).methods_by_name["Recommend"]
    assert [field.name for field in method.input_type.fields] == [
        "user_id", "surface", "limit", "exclude_item_ids", "include_item_ids", "context",
    ]  # fmt: skip


def test_a_taken_port_is_one_clear_sentence(start, settings, clock) -> None:
    start()
    kafka = KafkaLog("127.0.0.1:1")
    with pytest.raises(ResourceError, match="HEADWATER_GRPC_PORT"):
        Server(settings, Parts(redis.Redis(), clock, kafka, Telemetry(), echo))
    kafka.close()


def test_a_store_that_is_down_is_unavailable_and_a_log_that_is_down_too(start) -> None:
    client = start()
    with pytest.raises(UnavailableError, match="online store"):
        client.features("recommend", {"user_id": "u1", "item_id": "a", "category": "c"})
    with pytest.raises(UnavailableError, match="event log"):
        client.track(Event("e1", "purchase", NOW, "u1"))


def test_an_event_of_which_nothing_is_heard_may_be_sent_again() -> None:
    with pytest.raises(UnavailableError, match=r"event log: nothing heard of e1 .* Send it again"):
        Taken(Event("e1", "purchase", NOW, "u1"), NOW, Future()).settle(within_s=0.01)


@pytest.mark.integration
class TestFeatures:
    """GetFeatures against a real store."""

    def test_values_come_by_name_with_their_instant(self, start, valkey, valkey_client, put, put_recent) -> None:
        put(valkey_client, "user_activity", {("u1",): 7})
        put_recent(valkey_client, "u1", ["a", "b"])
        client = start(store=valkey)
        found = client.features("recommend", {"user_id": "u1", "item_id": "a", "category": "c"})
        assert found.values == {
            "user_purchases": 7.0, "item_purchases": 0.0, "user_item_purchases": 0.0, "user_category_purchases": 0.0,
        }  # fmt: skip
        assert (found.at, found.found) == (NOW, True)
        assert client.features("user_state", {"user_id": "u1"}).values == {"user_last_items": ["b", "a"]}

    def test_an_unknown_entity_is_not_found(self, start, valkey, valkey_client) -> None:
        found = start(store=valkey).features("user_state", {"user_id": "nobody"})
        assert found.values == {"user_last_items": None}
        assert not found.found

    def test_the_past_is_refused_and_named(self, start, valkey, valkey_client, put) -> None:
        put(valkey_client, "user_activity", {("u1",): 7}, newest=NOW - 5)
        with pytest.raises(ModelError, match=str(NOW - 5)):
            start(store=valkey).features("recommend", {"user_id": "u1", "item_id": "a", "category": "c"}, at=NOW - 5)

    def test_an_unknown_service_or_a_missing_key_is_the_caller_s_to_mend(self, start, valkey) -> None:
        client = start(store=valkey)
        with pytest.raises(DataError, match="no such feature service"):
            client.features("nothing", {"user_id": "u1"})
        with pytest.raises(DataError, match="--entity item_id="):
            client.features("recommend", {"user_id": "u1"})


def read_all(bootstrap: str, topic: str, wanted: set[str], name: str = "event_id") -> dict[str, object]:
    """Messages of a topic by one of their fields, once all wanted ones are there."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in (0, 1)])
    found: dict[str, object] = {}
    deadline = time.monotonic() + 30
    while wanted - set(found) and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found[json.loads(message.value())[name]] = message
    consumer.close()
    return found


@pytest.mark.integration
class TestTracking:
    """Track against a real broker."""

    def test_an_event_lands_under_its_user_at_the_clock_s_time(self, start, kafka, clock) -> None:
        event = Event("serve-1", "purchase", NOW - 1000, "u1", item_id="a", value=2.5, context={"store": "9"})
        assert start(kafka=kafka).track(event) == NOW
        message = read_all(kafka, topics.EVENTS, {"serve-1"})["serve-1"]
        assert message.key() == b"u1"
        assert message.timestamp()[1] == NOW
        assert json.loads(message.value()) == json.loads(event.to_json())

    def test_an_event_without_a_time_happened_now(self, start, kafka, settings) -> None:
        start(kafka=kafka)
        with grpc.insecure_channel(addresses(settings).grpc) as channel:
            event = event_pb2.Event(event_id="serve-2", event_type="view", user_id="u1")
            event_pb2_grpc.EventServiceStub(channel).Track(event_pb2.TrackRequest(event=event), timeout=10)
        message = read_all(kafka, topics.EVENTS, {"serve-2"})["serve-2"]
        assert json.loads(message.value())["event_time"] == NOW

    def test_a_stream_takes_the_good_and_says_what_was_wrong_with_the_rest(self, start, kafka) -> None:
        good = Event("serve-3", "purchase", NOW, "u1")
        bad = replace(good, event_id="serve-4", event_time=NOW + 10 * DAY_MS)
        accepted, refusals = start(kafka=kafka).track_many([good, bad, replace(good, event_id="serve-5")])
        assert accepted == 2
        assert len(refusals) == 1
        assert refusals[0].startswith("1: clock_skew")
        read_all(kafka, topics.EVENTS, {"serve-3", "serve-5"})

    def test_one_bad_event_is_refused_with_its_reason(self, start, kafka) -> None:
        with pytest.raises(DataError, match="unknown_type"):
            start(kafka=kafka).track(Event("serve-6", "Not A Type", NOW, "u1"))


@pytest.mark.integration
def test_what_a_reply_showed_is_in_the_log(settings, kafka, valkey, valkey_client, put, clock, funnel, promote) -> None:
    """Over gRPC, from a real store, to a real broker."""
    put(valkey_client, "user_item", {("u1", "i5"): 2})
    store, log, telemetry = redis.Redis.from_url(valkey), KafkaLog(kafka), Telemetry()
    impressions = ImpressionLog(log, telemetry)
    logged = telemetry.impressions("logged")
    promote("v1")
    parts = Parts(
        store, clock, log, telemetry, lambda plan, folder: funnel(store, impressions=impressions, telemetry=telemetry)
    )
    server = Server(settings, replace(parts, close=impressions.close))
    server.start()
    with Client(addresses(settings).grpc) as client:
        ranked = client.recommend("u1", limit=3)
        read = {"view": "user_item", "feature": "user_item_purchases"}
        n, missing = (telemetry.registry.get_sample_value(f"headwater_feature_{name}_total", read)
                      for name in ("values", "nulls"))  # fmt: skip
        assert n == missing + 1 > 3
        client.features("recommend", {"user_id": "u1", "item_id": "i5", "category": "c1"})
        assert telemetry.registry.get_sample_value("headwater_feature_values_total", read) == n + 1
        day = {"view": "user_item", "le": "86400.0"}
        assert telemetry.registry.get_sample_value("headwater_feature_age_seconds_bucket", day) == 2
    server.close()  # what is queued is sent
    message = read_all(kafka, topics.IMPRESSIONS, {ranked.request_id}, "request_id")[ranked.request_id]
    told = json.loads(message.value())
    assert message.key() == b"u1"
    assert message.timestamp()[1] == NOW
    assert [item["item_id"] for item in told["items"]] == [item.item_id for item in ranked.items]
    assert telemetry.impressions("logged") == logged + 1


@pytest.mark.integration
def test_the_process_gets_ready_serves_metrics_and_drains(settings, valkey, kafka, until, tmp_path) -> None:
    """The module itself, as `headwater up` runs it."""
    env = {
        "HEADWATER_STATE_DIR": str(settings.state_dir), "HEADWATER_REPO": str(settings.repo), "HEADWATER_KAFKA": kafka,
        "HEADWATER_REDIS": valkey, "HEADWATER_GRPC_PORT": str(settings.grpc_port),
        "HEADWATER_METRICS_PORT": str(settings.metrics_port), "PATH": "/usr/bin",
    }  # fmt: skip
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "serving.workers"], env=env, stdout=output, stderr=output)
        try:
            ready = settings.run_dir / "serve.ready"
            until(lambda: ready.exists() or process.poll() is not None, "the server", 60)
            assert json.loads(ready.read_text())["pid"] == process.pid, (tmp_path / "log").read_text()
            with Client(addresses(settings).grpc) as client, pytest.raises(ModelError):
                client.recommend("u1")
            with urllib.request.urlopen(f"http://127.0.0.1:{settings.metrics_port}/metrics") as page:
                metrics = page.read().decode()
            assert 'headwater_calls_total{code="FAILED_PRECONDITION",method="Recommend"} 1.0' in metrics
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not ready.exists()


def test_the_server_imports_no_engine() -> None:
    """Feast takes seconds to import and drags torch in."""
    code = (
        "import sys, serving.server, serving.build, serving.cli\n"
        "heavy = ('pyflink', 'pyspark', 'torch', 'feast', 'mlflow', 'opentelemetry.sdk')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
