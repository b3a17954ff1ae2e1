"""Simulated shoppers against the real server, log and clock: what was recorded is what arrived."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from confluent_kafka import Consumer, TopicPartition

from headwater import topics
from headwater.clock import StoredClock
from headwater.datasets.complete_journey import home_of
from headwater.events import Event, EventLimits, archive_table, parse_event
from headwater.kafka_io import client_config, describe, offset_bounds, partitions_of
from headwater.plan import DAY_MS
from headwater.settings import Settings
from serving.contracts import Ranked, RankedItem, Request
from serving.server import Parts, Server
from serving.telemetry import Telemetry
from serving.tracking import KafkaLog
from simulation.config import WorldConfig, load_world_config
from simulation.run import Asked, simulate

START = 18_000 * DAY_MS
pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Shelf:
    """Shows everyone the same products."""

    version: str = "v1"

    def tuned(self, how) -> "Shelf":
        return self

    def request(self, user_id, surface="", limit=0, exclude=(), include=(), context=None):
        return Request(user_id, surface or "home", limit or 10)

    def recommend(self, request: Request, wait_s: float | None = None) -> Ranked:
        items = [RankedItem(f"i{at}", 0.5, at + 1, ("popular",), (), {}) for at in range(request.limit)]
        return Ranked(f"r-{request.user_id}-{np.random.default_rng().integers(2**60)}", items, (), "v1", "champion")


@pytest.fixture
def platform(settings: Settings, promote, kafka: str, valkey: str) -> Iterator[Settings]:
    """A running server, an archive of purchases and a catalogue."""
    settings = settings.model_copy(update={"kafka": kafka, "redis": valkey})
    rng = np.random.default_rng(3)
    bought = [
        Event(f"e{at}", "purchase", at * DAY_MS // 50, f"u{rng.integers(20)}", f"i{rng.integers(30)}", value=2.5)
        for at in range(1500)
    ]
    folder = settings.events_dir / "date=1970-01-01"
    folder.mkdir(parents=True)
    times = [event.event_time for event in bought]
    pq.write_table(archive_table(bought, times, 0, list(range(len(bought)))), folder / "import-0.parquet")
    home_of(settings).mkdir(parents=True)
    items = {"item_id": [f"i{at}" for at in range(30)], "category": ["MILK", "CANDY"] * 15, "name": ["it"] * 30}
    pq.write_table(pa.table(items), home_of(settings) / "items.parquet")
    promote("v1")
    with redis.Redis.from_url(valkey) as store:
        store.flushall()
        StoredClock(store).set(START - DAY_MS // 3)
        server = Server(settings, Parts(store, StoredClock(store), KafkaLog(kafka), Telemetry(), lambda *_: Shelf()))
        server.start()
        yield settings
        server.close()


@pytest.fixture
def config() -> WorldConfig:
    held = load_world_config().model_dump()
    held["tastes"] |= {"dimensions": 4, "base": -2.0}
    held["outcomes"]["return_days"] = [1, 1]
    held["new_products"] |= {"count": 3, "a_day": 3}
    held["trends"] = []
    return WorldConfig.model_validate(held)


def test_each_event_arrives_once_as_it_was_recorded_and_the_clock_goes_on(platform, config, tmp_path):
    before = {topic: _ends(platform.kafka, topic) for topic in (topics.EVENTS, topics.ITEMS, topics.USERS)}
    told = simulate(platform, Asked(config, days=2, out=tmp_path / "run", connections=2), lambda *_: None)
    assert (told["simulated"], told["days"], told["played"], told["failures"]) == (True, 2, 2, {})

    recorded = pq.read_table(tmp_path / "run" / "events").to_pandas()
    recorded = recorded[recorded["due_day"].isna()]
    arrived = [
        (parse_event(value, key, at_ms, EventLimits()), at_ms)
        for key, value, at_ms in _since(platform.kafka, topics.EVENTS, before[topics.EVENTS])
    ]
    assert Counter(event.event_id for event, _ in arrived) == Counter(recorded["event_id"])
    assert all(START <= event.event_time <= at_ms < START + 2 * DAY_MS for event, at_ms in arrived)
    assert told["events"] == len(arrived) > told["requests"] > 0

    lists = pq.read_table(tmp_path / "run" / "lists").to_pandas().set_index("request_id")
    for event, _ in arrived:
        if event.position is not None:
            assert lists.loc[event.request_id, "items"][event.position - 1] == event.item_id
            assert lists.loc[event.request_id, "user_id"] == event.user_id

    announced = [json.loads(value) for _, value, _ in _since(platform.kafka, topics.ITEMS, before[topics.ITEMS])]
    assert sorted(one["item_id"] for one in announced) == [f"sim-1-p{at:04d}" for at in range(3)]
    assert {one["category"] for one in announced} <= {"MILK", "CANDY"}
    assert len(list(_since(platform.kafka, topics.USERS, before[topics.USERS]))) == 2 * config.shoppers.new_a_day
    with redis.Redis.from_url(platform.redis) as store:
        assert START + 2 * DAY_MS <= StoredClock(store).now_ms() < START + 2 * DAY_MS + 600_000


def _ends(kafka: str, topic: str) -> dict[int, int]:
    consumer = Consumer(client_config(kafka) | {"group.id": "ends"})
    try:
        bounds = offset_bounds(consumer, topic, partitions_of(describe(kafka), topic))
        return {partition: end for partition, (_, end) in bounds.items()}
    finally:
        consumer.close()


def _since(kafka: str, topic: str, starts: dict[int, int]) -> Iterator[tuple[bytes, bytes, int]]:
    """Key, value and timestamp of all records from some offsets on."""
    left = sum(_ends(kafka, topic).values()) - sum(starts.values())
    consumer = Consumer(client_config(kafka) | {"group.id": "since", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in starts.items()])
        while left:
            message: Any = consumer.poll(20.0)
            assert message is not None
            assert message.error() is None
            left -= 1
            yield message.key(), message.value(), message.timestamp()[1]
    finally:
        consumer.close()
