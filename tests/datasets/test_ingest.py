"""Files through a real broker: all rows once, the refused ones with their bytes, and on after a stop."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from headwater import topics
from headwater.clock import ManualClock
from headwater.datasets import pump, replay
from headwater.datasets.columns import ColumnMap
from headwater.datasets.ingest import ingest
from headwater.errors import ConfigError, UnavailableError
from headwater.events import Event, EventLimits, archive_table, parse_event
from headwater.kafka_io import client_config, describe, offset_bounds
from headwater.settings import Settings

pytestmark = pytest.mark.integration
NOW = 1_511_000_000_000
MAP = ColumnMap({})


class Tail:
    """What arrives in a topic from now on."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer(client_config(bootstrap) | {"group.id": "tail", "enable.auto.commit": False})
        ends = offset_bounds(self._consumer, topic, describe(bootstrap).partitions[topic])
        self._consumer.assign([TopicPartition(topic, partition, end) for partition, (_, end) in ends.items()])

    def __enter__(self) -> "Tail":
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def take(self, count: int) -> list[Message]:
        """Exactly this many, or what came within some seconds."""
        found: list[Message] = []
        deadline = time.monotonic() + 20
        while len(found) < count and time.monotonic() < deadline:
            found += self._consumer.consume(1000, timeout=0.2)
        return found + self._consumer.consume(1, timeout=0.2)


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", kafka=kafka)


@pytest.fixture
def tail(kafka: str) -> Iterator[Callable[[str], Tail]]:
    with ExitStack() as stack:
        yield lambda topic: stack.enter_context(Tail(kafka, topic))


@pytest.fixture
def events(tail: Callable[[str], Tail]) -> Tail:
    return tail(topics.EVENTS)


@pytest.fixture
def dead_letters(tail: Callable[[str], Tail]) -> Tail:
    return tail(topics.DEAD_LETTER)


def write_lines(path: Path, count: int, broken: dict[int, bytes] | None = None) -> Path:
    lines = [json.dumps({"event_time": NOW - row, "user_id": row % 5, "item_id": row}).encode() for row in range(count)]
    for row, raw in (broken or {}).items():
        lines[row] = raw
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_rows_become_events_and_what_is_none_keeps_its_bytes(settings, events, dead_letters, tmp_path) -> None:
    broken = {3: b'{"event_time": ', 5: b'{"event_time": "noon", "user_id": 1}', 8: b'{"event_time": 1}'}
    file = write_lines(tmp_path / "events.jsonl", 10, broken)
    summary = ingest(settings, file, MAP, ManualClock(NOW))
    assert (summary.rows, summary.produced, summary.dead_letters, summary.resumed_from) == (10, 7, 3, 0)
    arrived = events.take(7)
    assert {message.timestamp()[1] for message in arrived} == {NOW}
    parsed = [parse_event(message.value(), message.key(), NOW, EventLimits()) for message in arrived]
    assert sorted(int(event.item_id) for event in parsed) == [0, 1, 2, 4, 6, 7, 9]
    assert all(message.key().decode() == event.user_id for message, event in zip(arrived, parsed, strict=True))
    refused = {message.value(): dict(message.headers()) for message in dead_letters.take(3)}
    assert set(refused) == set(broken.values())
    assert [refused[raw]["reason"] for raw in broken.values()] == [b"malformed", b"malformed", b"no_key"]
    assert [refused[raw]["offset"] for raw in broken.values()] == [b"3", b"5", b"8"]


def test_a_stop_is_taken_up_where_the_broker_last_answered(settings, events, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pump, "SETTLE_EVERY", 10)
    file = write_lines(tmp_path / "events.jsonl", 35)

    def stopped(done: int, total: int) -> None:
        assert total == 35
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(settings, file, MAP, ManualClock(NOW), report=stopped)
    second = ingest(settings, file, MAP, ManualClock(NOW))
    assert (second.resumed_from, second.rows, second.produced) == (20, 15, 15)
    third = ingest(settings, file, MAP, ManualClock(NOW))
    assert (third.resumed_from, third.rows) == (35, 0)
    ids = [json.loads(message.value())["event_id"] for message in events.take(35)]
    assert set(Counter(ids).values()) == {1}
    assert len(ids) == 35


def test_ids_are_those_of_the_content_so_that_sending_again_adds_nothing(settings, events, tmp_path) -> None:
    file = write_lines(tmp_path / "events.jsonl", 4)
    ingest(settings, file, MAP, ManualClock(NOW))
    again = ingest(settings, file, MAP, ManualClock(NOW), restart=True)
    assert again.produced == 4
    ids = Counter(json.loads(message.value())["event_id"] for message in events.take(8))
    assert sorted(ids.values()) == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("columns", "historic", "timestamps"),
    [
        (MAP, True, [NOW - 2, NOW - 1, NOW]),
        (ColumnMap.parse("", ingest_time="seen"), False, [NOW + 10, NOW + 11, NOW + 12]),
    ],
)
def test_ingest_time_is_the_records_timestamp(settings, events, tmp_path, columns, historic, timestamps) -> None:
    file = tmp_path / "past.parquet"
    rows = [{"event_time": NOW - row, "user_id": "1", "seen": NOW + 10 + row} for row in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    ingest(settings, file, columns, ManualClock(NOW + 99), historic=historic)
    assert sorted(message.timestamp()[1] for message in events.take(3)) == timestamps


def test_what_cannot_be_asked_is_refused(settings, tmp_path) -> None:
    file = write_lines(tmp_path / "events.jsonl", 1)
    with pytest.raises(ConfigError, match="--ingest-time"):
        ingest(settings, file, ColumnMap.parse("", ingest_time="seen"), ManualClock(NOW), historic=True)
    with pytest.raises(UnavailableError, match="topic nowhere does not exist"):
        ingest(settings, file, MAP, ManualClock(NOW), topic="nowhere")


class RecordedClock(ManualClock):
    def __init__(self) -> None:
        super().__init__(0)
        self.moves: list[tuple[int, float]] = []

    def set(self, at_ms: int, speed: float = 1.0) -> None:
        self.moves.append((at_ms, speed))


def test_a_replay_keeps_each_ingest_time_and_moves_the_clock(settings, events, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pump, "SETTLE_EVERY", 3)
    past = [Event(f"e{row}", "purchase", NOW + row, str(row % 2), context={"shop": "north"}) for row in range(7)]
    file = tmp_path / "replay.parquet"
    times = [event.event_time for event in past]
    pq.write_table(archive_table(past, times, -1, list(range(7))), file)
    clock = RecordedClock()
    summary = replay.replay(settings, file, clock)
    assert (summary.events, summary.resumed_from, summary.last_ms) == (7, 0, NOW + 6)
    assert clock.moves == [(NOW, 0), (NOW + 2, 0), (NOW + 5, 0), (NOW + 6, 0), (NOW + 7, 1)]
    arrived = events.take(7)
    by_id = {json.loads(message.value())["event_id"]: message for message in arrived}
    for event in past:
        message = by_id[event.event_id]
        assert message.timestamp()[1] == event.event_time
        assert parse_event(message.value(), message.key(), event.event_time, EventLimits()) == event
    assert replay.replay(settings, file, clock).events == 0
    assert clock.moves[-1] == (NOW + 7, 1)


def test_the_catalogue_is_sent_once_by_id(settings, tail, tmp_path) -> None:
    home = settings.data_dir / "complete_journey"
    home.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["1", "2"], "name": ["Milk", None]}), home / "items.parquet")
    pq.write_table(pa.table({"user_id": ["7"], "age": [3]}), home / "users.parquet")
    items, users = tail(topics.ITEMS), tail(topics.USERS)
    assert replay.publish_catalogue(settings) == {"items": 2, "users": 1}
    assert replay.publish_catalogue(settings) == {"items": 2, "users": 1}
    sent = {message.key(): json.loads(message.value()) for message in items.take(2)}
    assert sent == {b"1": {"item_id": "1", "name": "Milk"}, b"2": {"item_id": "2"}}
    assert [json.loads(message.value()) for message in users.take(1)] == [{"user_id": "7", "age": 3}]
