"""The archive against a real broker: each record once, through kills; what is refused keeps its bytes."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from confluent_kafka import Consumer, TopicPartition

from headwater import topics
from headwater.archive_files import live_files, span_of
from headwater.errors import DataError, ResourceError, UnavailableError
from headwater.events import ARCHIVE_SCHEMA, Event
from headwater.forgotten import Tombstone, read_tombstones, save_tombstone
from headwater.kafka_io import Record, Sender, client_config, describe, offset_bounds
from headwater.runtime.ready import is_marked, ready_path
from headwater.settings import Settings
from streaming.archive import archived_offsets, catch_up
from streaming.archive_writer import ArchiveWriter, WriterRunning
from streaming.erasure import Eraser, erase
from streaming.parquet_log import files_held, read_manifest
from streaming.verification import verify

pytestmark = pytest.mark.integration
NOW = 1_511_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", kafka=kafka)


@pytest.fixture
def start(kafka: str, settings: Settings) -> dict[int, int]:
    """End of ``events`` before the test; an archive that begins there sees only the test's records."""
    catch_up(settings)
    return archived_offsets(settings)


@pytest.fixture
def writer_process(settings: Settings) -> Iterator[Callable[..., subprocess.Popen]]:
    started: list[subprocess.Popen] = []
    environment = os.environ | {
        "HEADWATER_STATE_DIR": str(settings.state_dir), "HEADWATER_KAFKA": settings.kafka or ""
    }  # fmt: skip

    def begin(*command: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, *command], env=environment)
        started.append(process)
        wait_for(lambda: is_marked(settings, "archive", process.pid))
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def event(number: int, **changes: object) -> Event:
    given = {"event_id": f"e{number}", "event_type": "view", "event_time": NOW - number, "user_id": f"u{number % 9}"}
    return Event(**given | changes)


def send(kafka: str, events: list[Event], ingest_ms: int = NOW) -> None:
    sender = Sender(kafka)
    for one in events:
        sender.send(Record(topics.EVENTS, one.user_id.encode(), one.to_json(), ingest_ms))
    sender.settle()


def archived(settings: Settings, start: dict[int, int]) -> pa.Table:
    table = ds.dataset(settings.events_dir, schema=ARCHIVE_SCHEMA, format="parquet").to_table()
    new = [
        offset >= start.get(partition, 0)
        for partition, offset in zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True)
    ]
    return table.filter(pa.array(new, pa.bool_()))


def places(table: pa.Table) -> Counter:
    return Counter(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))


def read_topic(kafka: str, topic: str, since: dict[int, int]) -> list:
    consumer = Consumer(client_config(kafka) | {"group.id": "test", "enable.auto.commit": False})
    bounds = offset_bounds(consumer, topic, describe(kafka).partitions[topic])
    wanted = sum(end - since.get(partition, 0) for partition, (_, end) in bounds.items())
    consumer.assign([TopicPartition(topic, partition, since.get(partition, 0)) for partition in bounds])
    found: list = []
    while len(found) < wanted:
        found += consumer.consume(wanted - len(found), timeout=1)
    consumer.close()
    return found


def ends_of(kafka: str, topic: str) -> dict[int, int]:
    consumer = Consumer(client_config(kafka) | {"group.id": "test", "enable.auto.commit": False})
    bounds = offset_bounds(consumer, topic, describe(kafka).partitions[topic])
    consumer.close()
    return {partition: end for partition, (_, end) in bounds.items()}


def test_what_was_sent_is_what_is_archived_under_its_date(settings, kafka, start) -> None:
    sent = [event(n, event_time=NOW - n * DAY_MS // 4, value=n / 3, context={"shop": "north"}) for n in range(40)]
    send(kafka, sent + sent[:3])
    done = catch_up(settings)
    assert (done.archived, done.dead_letters) == (43, 0)
    assert done.partitions == archived_offsets(settings) == ends_of(kafka, topics.EVENTS)
    table = archived(settings, start)
    rows = table.select(ARCHIVE_SCHEMA.names[:10]).to_pylist()
    read = [Event(**row | {"context": dict(row["context"])}) for row in rows]
    assert sorted(read, key=attrgetter("event_id")) == sorted(sent + sent[:3], key=attrgetter("event_id"))
    assert set(table["ingest_time"].to_pylist()) == {NOW}
    dated = ds.dataset(settings.events_dir, format="parquet", partitioning="hive").to_table()
    assert {row["date"] for row in dated.to_pylist()} >= {"2017-11-18", "2017-11-08"}
    again = catch_up(settings)
    assert again.archived == 0
    assert archived(settings, start).num_rows == 43


def test_refused_records_keep_their_bytes_and_stop_nothing(settings, kafka, start) -> None:
    since = ends_of(kafka, topics.DEAD_LETTER)
    bad = {
        b'{"event_id": ': b"malformed",
        b"\xff\x00": b"malformed",
        event(1, event_time=NOW + DAY_MS).to_json(): b"clock_skew",
        event(2, value=1e13).to_json(): b"value_out_of_range",
        b" " * 70_000: b"oversized",
    }
    sender = Sender(kafka)
    for raw in bad:
        sender.send(Record(topics.EVENTS, b"u1", raw, NOW))
    sender.send(Record(topics.EVENTS, None, event(3).to_json(), NOW))
    sender.settle()
    send(kafka, [event(4), event(5, event_time=NOW + 1000)])
    done = catch_up(settings)
    assert (done.archived, done.dead_letters) == (2, 6)
    assert read_manifest(settings.events_dir).totals["cut_to_ingest_time"] == 1
    table = archived(settings, start)
    assert sorted(table["event_id"].to_pylist()) == ["e4", "e5"]
    assert max(table["event_time"].to_pylist()) == NOW
    letters = {message.value(): message for message in read_topic(kafka, topics.DEAD_LETTER, since)}
    reasons = {raw: dict(message.headers())["reason"] for raw, message in letters.items()}
    assert reasons == bad | {event(3).to_json(): b"no_key"}
    for message in letters.values():
        headers = {name: value.decode("latin1") for name, value in message.headers()}
        assert message.key().decode() == f"{headers['source']}-{headers['partition']}-{headers['offset']}"
        assert headers["source"] == topics.EVENTS
        assert message.timestamp()[1] == NOW


def test_too_late_is_told_and_archived_all_the_same(settings, kafka, start, monkeypatch) -> None:
    monkeypatch.setattr("streaming.archive_writer._horizon_ms", lambda *_: DAY_MS)
    since = ends_of(kafka, topics.DEAD_LETTER)
    send(kafka, [event(1, event_time=NOW - DAY_MS - 1), event(2)])
    done = catch_up(settings)
    assert (done.archived, done.dead_letters) == (2, 1)
    (letter,) = read_topic(kafka, topics.DEAD_LETTER, since)
    assert dict(letter.headers())["reason"] == b"too_late"


def test_impressions_are_archived_as_they_are(settings, kafka) -> None:
    catch_up(settings)
    sender = Sender(kafka)
    sender.send(Record(topics.IMPRESSIONS, b"u1", b'{"request_id": "r1"}', NOW))
    sender.settle()
    catch_up(settings)
    rows = ds.dataset(settings.impressions_dir, format="parquet").to_table().to_pylist()
    assert [(row["value"], row["ingest_time"]) for row in rows if "r1" in row["value"]] == [
        ('{"request_id": "r1"}', NOW)
    ]


def test_kills_lose_and_double_nothing(settings, kafka, start, writer_process) -> None:
    """Records keep coming while the writer is killed, at no moment of its choosing, and started again."""
    rng, sent = random.Random(5), 0
    for _ in range(3):
        process = writer_process("-c", "from streaming.archive import main; main(flush_s=0.05)")
        for _ in range(rng.randint(2, 6)):
            send(kafka, [event(number, event_time=NOW - number * 600_000) for number in range(sent, sent + 500)])
            sent += 500
            time.sleep(rng.random() / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = catch_up(settings)
    assert done.partitions == ends_of(kafka, topics.EVENTS)
    table = archived(settings, start)
    expected = {
        (partition, offset) for partition, end in done.partitions.items() for offset in range(start[partition], end)
    }
    assert places(table) == Counter(expected)
    assert sorted(table["event_id"].to_pylist()) == sorted(f"e{number}" for number in range(sent))


def test_an_entity_is_forgotten_beside_a_writer_that_goes_on(settings, kafka, start, writer_process) -> None:
    """Its rows before the tombstone are gone, those after it and all others are there, each once."""
    writer_process("-c", "from streaming.archive import main; main(flush_s=0.05)")
    numbers = itertools.count()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(
            lambda: [send(kafka, [event(number) for number in itertools.islice(numbers, 100)]) for _ in range(40)]
        )
        wait_for(lambda: archived_offsets(settings) != start)
        cuts = ends_of(kafka, topics.EVENTS)
        with files_held(settings.archive_dir):
            save_tombstone(settings.archive_dir, Tombstone("user_id", "u3", NOW, {topics.EVENTS: cuts}))
        erase(
            settings.archive_dir, settings.events_dir,
            Eraser(topics.EVENTS, None, read_tombstones(settings.archive_dir)).kept,
        )  # fmt: skip
        sending.result()
    done = catch_up(settings)
    sent = read_topic(kafka, topics.EVENTS, start)
    own = {(m.partition(), m.offset()) for m in sent if m.key() == b"u3" and m.offset() < cuts[m.partition()]}
    later = [m for m in sent if m.key() == b"u3" and m.offset() >= cuts[m.partition()]]
    assert own
    assert later
    assert places(archived(settings, start)) == Counter({(m.partition(), m.offset()) for m in sent} - own)
    assert done.partitions == ends_of(kafka, topics.EVENTS)


def test_the_process_says_when_it_is_ready_and_ends_in_good_order(settings, kafka, start, writer_process) -> None:
    process = writer_process("-m", "streaming.archive")
    assert json.loads(ready_path(settings, "archive").read_text())["pid"] == process.pid
    send(kafka, [event(number) for number in range(25)])
    ends = ends_of(kafka, topics.EVENTS)
    waited = catch_up(settings)  # the process has the lock, so this waits for it
    assert waited.partitions == ends
    assert archived(settings, start).num_rows == 25
    send(kafka, [event(99)])
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert not ready_path(settings, "archive").exists()
    catch_up(settings)
    assert archived(settings, start).num_rows == 26


def test_a_second_writer_is_refused_and_a_missing_topic_named(settings, kafka, monkeypatch) -> None:
    with ArchiveWriter(settings), pytest.raises(WriterRunning, match="another process"), ArchiveWriter(settings):
        pass
    monkeypatch.setattr(topics, "IMPRESSIONS", "nowhere")
    with pytest.raises(UnavailableError, match="topic nowhere does not exist"):
        catch_up(settings)


def test_a_running_writer_brings_its_own_small_files_together(settings, kafka, start, monkeypatch) -> None:
    monkeypatch.setattr("streaming.archive_writer.TIDY_S", 0.0)
    monkeypatch.setattr("streaming.archive_writer.MANY_FILES", 2)
    with ArchiveWriter(settings, flush_s=0) as writer:
        for number in range(6):
            send(kafka, [event(number * 10 + at) for at in range(10)])
            ends = {topics.EVENTS: ends_of(kafka, topics.EVENTS)}
            writer.run(until=lambda ends=ends: writer.has_reached(ends))
        wait = iter(range(20))
        writer.run(until=lambda: next(wait) == 19)  # turns without a record
    files = live_files(settings.events_dir)
    assert len(files) == len({(path.parent, span_of(path).partition) for path in files}), "one of a date and partition"
    assert len(list(settings.events_dir.glob("date=*/*.parquet"))) > len(files)
    found = [topic for topic in verify(settings) if topic.topic == topics.EVENTS]
    assert found[0].is_exact


def test_a_writer_that_cannot_compact_goes_on_archiving(settings, kafka, start, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("not compacted, No space left on device")

    monkeypatch.setattr("streaming.archive_writer.TIDY_S", 0.0)
    monkeypatch.setattr("streaming.archive_writer.compact", full)
    send(kafka, [event(number) for number in range(10)])
    catch_up(settings)
    assert archived(settings, start).num_rows == 10


def test_a_writer_does_not_start_on_columns_that_do_not_go_on(settings, kafka, monkeypatch) -> None:
    catch_up(settings)
    send(kafka, [event(1)])
    catch_up(settings)
    retyped = pa.schema([field.with_type(pa.string()) if field.name == "value" else field for field in ARCHIVE_SCHEMA])
    monkeypatch.setattr("streaming.archive_writer.ARCHIVE_SCHEMA", retyped)
    with pytest.raises(DataError, match="events: column value is archived as double and declared as string"):
        catch_up(settings)
