"""Broker, store and stream job as `headwater up` runs them, on a repository of their own, and events to send."""

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import psutil
import redis
from confluent_kafka import Producer
from support.definitions import aggregation, plan_of, stream_view
from support.tiles import write_all

from benchmarks.oracle import Row
from headwater import folds, topics
from headwater.events import Event
from headwater.online import codec
from headwater.online.keys import entity_key, project_prefix
from headwater.online.writer import OnlineWriter
from headwater.plan import FeaturePlan, View
from headwater.runtime import supervisor
from headwater.runtime.ports import free_port
from headwater.settings import Settings, addresses
from streaming import progress, telemetry

START, STEP_MS, HOUR_MS = 1_700_000_000_000, 20, 3_600_000
USERS, ITEMS = 400, 50
IS_FULL = bool(os.environ.get("HEADWATER_TEST_FULL"))
FLINK_HEAP_MB = 3_000 if IS_FULL else 700
"""The state of a file's tests lies on it together: an id or a tile takes some 400 bytes."""
POISON = (b"", b"{", b"\xff\xfe", b"null", b'{"event_id": 5}', b'{"event_id": "x", "event_time": "now"}', b"x" * 70_000)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def small_plan() -> FeaturePlan:
    """Numbers and the newest items of a user by the hour, and a user's purchases of an item for ever."""
    purchases = "SELECT user_id, item_id, value, event_time FROM events WHERE event_type = 'purchase'"
    by_user = [
        aggregation("n", "count", window=DAY, hop=HOUR),
        aggregation("spend", "sum", "value", DAY, HOUR),
        aggregation("most", "max", "value", DAY, HOUR),
        aggregation("items", "last(5)", "item_id", DAY, HOUR),
    ]
    return plan_of(
        stream_view(by_user, ("user_id",), purchases, name="by_user"),
        stream_view([aggregation("total", "count", window=None)], ("user_id", "item_id"), purchases, name="by_item"),
        project="faulty",
    )


@dataclass(frozen=True)
class Sent:
    """Records on their way to the topic, and the rows that count of them."""

    records: list[tuple[bytes, bytes, int]]
    rows: list[Row]
    users: list[str]


def draw(name: str, n: int, seed: int = 0) -> Sent:
    """``n`` events in disorder, every fiftieth a copy of an earlier one and every thousandth a poison."""
    chance = random.Random(f"{name}{seed}")
    records: list[tuple[bytes, bytes, int]] = []
    rows: list[Row] = []
    for at in range(n):
        ingest = START + at * STEP_MS
        if at % 1000 == 999:
            records.append((b"poison", POISON[at // 1000 % len(POISON)], ingest))
            continue
        if at % 50 == 49:
            key, value, _ = records[chance.randrange(len(records))]
            records.append((key, value, ingest))
            continue
        user, item = f"{name}-{chance.randrange(USERS)}", str(chance.randrange(ITEMS))
        when, amount = ingest - chance.choice((0, 0, 1_000, 60_000, HOUR_MS)), chance.randrange(-5_000, 100_000) / 100
        event = Event(f"{name}-{at}", "purchase", when, user, item, value=amount)
        records.append((user.encode(), event.to_json(), ingest))
        rows.append(Row(event.event_id, when, ingest, (user, item), {
            "item_id": item, "value": int(folds.to_fixed(amount)), "event_time": when,
        }))  # fmt: skip
    return Sent(records, rows, [f"{name}-{number}" for number in range(USERS)])


class Platform:
    """The parts, started and ended by the supervisor."""

    def __init__(
        self, folder: Path, state_backend: Literal["heap", "rocksdb"] = "heap", plan: FeaturePlan | None = None
    ) -> None:
        ports = ("kafka_port", "redis_port", "grpc_port", "metrics_port", "stream_metrics_port")
        self.settings = Settings(
            state_dir=folder / "state", repo=folder / "repo", kafka_heap_mb=320, flink_heap_mb=FLINK_HEAP_MB,
            state_backend=state_backend, **{port: free_port() for port in ports},
        )  # fmt: skip
        data = folder / "repo" / "data"
        data.mkdir(parents=True)
        (folder / "repo" / "feature_store.yaml").write_text("project: faulty\nregistry: data/registry.db\n")
        (data / "registry.db").write_bytes(b"registry")
        self.apply(plan or small_plan())

    def apply(self, plan: FeaturePlan) -> None:
        """Make this the plan of the next start."""
        self.plan = plan
        digest = hashlib.sha256(b"registry").hexdigest()
        plan.model_copy(update={"registry_sha256": digest}).save(self.settings.manifest_path)

    def start(self, *names: str) -> None:
        supervisor.start(self.settings, names or ("kafka", "valkey", "stream"))

    def stop(self, *names: str) -> None:
        supervisor.stop(self.settings, names or None)

    def pid(self, name: str) -> int:
        return next(record.pid for record in supervisor.recorded(self.settings) if record.name == name)

    def part(self, name: str) -> supervisor.Part:
        return next(part for part in supervisor.status(self.settings) if part.name == name)

    def jvm(self) -> psutil.Process:
        return next(child for child in psutil.Process(self.pid("stream")).children() if child.name() == "java")

    def workers(self) -> list[psutil.Process]:
        """The sink's Python processes, not the shells around them."""
        return [child for child in self.jvm().children(recursive=True) if child.name().startswith("python")]

    def send(self, sent: Sent) -> None:
        producer = Producer({
            "bootstrap.servers": addresses(self.settings).kafka, "log_level": 0, "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        })  # fmt: skip
        for key, value, ingest_ms in sent.records:
            producer.produce(topics.EVENTS, value, key, timestamp=ingest_ms)
        assert producer.flush(60) == 0

    def status(self) -> dict:
        return telemetry.status(self.settings, self.plan)

    def writes(self) -> int:
        with self.store() as client:
            return telemetry.written(client, self.plan.project).tiles

    def store(self) -> redis.Redis:
        return redis.Redis.from_url(addresses(self.settings).redis, socket_timeout=60)

    def sent_and_begun(self, events: int, name: str) -> Sent:
        """A stream in Kafka of which the job has written a part, which a twentieth of the tiles is."""
        sent, before = draw(name, events), self.writes()
        self.send(sent)
        self.in_the_middle(before, events // 20)
        status = self.status()
        assert status["unread"] > 0 or status["lag"] > 0
        return sent

    def in_the_middle(self, before: int, tiles: int) -> None:
        """Return once so many tiles have been written since, which is far from all of them."""
        until(lambda: self.writes() > before + tiles, told=self.log)

    def catch_up(self) -> None:
        assert progress.wait_until_caught_up(self.settings, 240), self.log()

    def log(self) -> str:
        return "\n".join(supervisor.last_lines(supervisor.log_path(self.settings, "stream"), 30))

    def expect_exactly(self, sent: Sent) -> None:
        """Hold every tile of the stream's users to the tiles of the rows that count, byte for byte."""
        with self.store() as client:
            for view, rows in self._rows(sent):
                write_all(OnlineWriter(client, "oracle"), view, rows, codec.LIVE)
            ours, oracle = (
                [client.hgetall(entity_key(project_prefix(project), "user_id", user)) for user in sent.users]
                for project in (self.plan.project, "oracle")
            )
        assert any(oracle)
        differing = [user for user, one, other in zip(sent.users, ours, oracle, strict=True) if one != other]
        assert not differing, f"{len(differing)} of {len(sent.users)} users differ\n{self.log()}"

    def _rows(self, sent: Sent) -> Iterator[tuple[View, list[Row]]]:
        by_user, by_item = self.plan.views
        yield by_user, [Row(r.event_id, r.event_time, r.ingest_time, r.key[:1], r.values) for r in sent.rows]
        yield by_item, sent.rows


def until(holds: Callable[[], bool], timeout_s: float = 120, told: Callable[[], str] | None = None) -> None:
    """Wait; ``told`` says what there was instead."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about\n" + (told() if told else "")
        time.sleep(0.1)


def events_sent(full: int) -> int:
    """How many events a fault test sends: all of them only where HEADWATER_TEST_FULL is set."""
    return full if IS_FULL else full // 16
