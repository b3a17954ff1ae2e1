"""Impressions while Kafka is away: kept in order, sent when it is back, each counted once."""

import json
import threading
from collections import Counter
from concurrent.futures import Future

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater.errors import DataError, UnavailableError
from serving.impressions import BATCH, ImpressionLog
from serving.spill import Record, Spill, spill_of
from serving.telemetry import Telemetry

GONE = redis.Redis(port=1)
texts = st.text(max_size=12)
records = st.lists(st.builds(Record, texts, texts.map(lambda text: json.dumps(text).encode()), st.integers(0, 2**45)))
steps = st.lists(st.one_of(records, st.integers(1, 5), st.just("restart"), st.just("torn")), max_size=20)


@given(steps)
@tries(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_file_is_a_queue_that_outlives_its_process(tmp_path, steps):
    """Against a list: add at one end, look at and drop the other, die and come back, also in the middle of a write."""
    path = tmp_path / "spill"
    path.unlink(missing_ok=True)
    spill, held = Spill(path), []
    for step in steps:
        if isinstance(step, list):
            assert all(spill.add(record) for record in step)
            held += step
        elif isinstance(step, int):
            assert spill.head(step) == held[:step]
            if held:
                spill.drop()
            held = held[step:]
        else:
            spill.close()
            if step == "torn":
                path.write_bytes(path.read_bytes() + b'123\t"u1"\t{"half')
            spill = Spill(path)
        assert bool(spill) == bool(held)
    assert spill.head(1_000) == held
    spill.close()


def test_a_full_file_takes_no_more_until_it_is_empty(tmp_path):
    spill, record = Spill(tmp_path / "spill", most_bytes=200), Record("u", b"x" * 50, 1)
    taken = [spill.add(record) for _ in range(5)]
    assert taken == [True, True, True, False, False]
    assert (tmp_path / "spill").stat().st_size <= 200
    assert len(spill.head(9)) == 3
    spill.drop()
    assert spill.add(record)


class Kafka:
    """Takes records, or not, as it is told."""

    def __init__(self):
        self.up = True
        self.taken = []
        self.lock = threading.Lock()

    def append(self, topic, key, value, timestamp_ms):
        done, told = Future(), json.loads(value)
        with self.lock:
            if told["user_id"] == "too large":
                done.set_exception(DataError("too large"))
            elif self.up:
                self.taken.append(told["request_id"])
                done.set_result(None)
            else:
                done.set_exception(UnavailableError("kafka: down"))
        return done


@pytest.fixture
def shown(funnel):
    """``shown(sink, n)``: ids of n replies, each logged."""

    def show(sink, n, user="u1"):
        whole = funnel(GONE, impressions=sink)
        return [whole.recommend(whole.request(user, limit=2)).request_id for _ in range(n)]

    return show


def counts(telemetry):
    return Counter({name: telemetry.impressions(name) for name in ("logged", "spilled", "dropped", "failed")})


def test_an_outage_loses_nothing_and_keeps_the_order(tmp_path, shown, until, monkeypatch):
    monkeypatch.setattr("serving.impressions.PAUSE_S", 0.01)
    monkeypatch.setattr("serving.impressions.MOST_PAUSE_S", 0.05)
    kafka, telemetry = Kafka(), Telemetry()
    log = ImpressionLog(kafka, telemetry, spill=Spill(tmp_path / "spill"))
    before = shown(log, 3)
    until(lambda: kafka.taken == before, "the first")
    kafka.up = False
    during = shown(log, BATCH + 20)
    until(lambda: telemetry.impressions("spilled") == len(during), "the file")
    kafka.up = True
    until(lambda: kafka.taken == before + during, "what was kept")
    after = shown(log, 3)
    log.close()
    assert kafka.taken == before + during + after
    assert counts(telemetry)["logged"] == len(before + during + after)
    assert counts(telemetry)["dropped"] == counts(telemetry)["failed"] == 0


def test_what_a_server_kept_is_sent_by_the_next(tmp_path, shown, until):
    kafka = Kafka()
    kafka.up = False
    log = ImpressionLog(kafka, Telemetry(), spill=Spill(tmp_path / "spill"))
    kept = shown(log, 5)
    log.close()
    assert kafka.taken == []
    kafka.up = True
    again = ImpressionLog(kafka, Telemetry(), spill=Spill(tmp_path / "spill"))
    until(lambda: kafka.taken == kept, "what the first had kept")
    again.close()
    assert not Spill(tmp_path / "spill")


def test_each_is_counted_once_where_the_file_is_full_or_a_record_is_refused(tmp_path, shown):
    kafka, telemetry = Kafka(), Telemetry()
    kafka.up = False
    log = ImpressionLog(kafka, telemetry, spill=Spill(tmp_path / "spill", most_bytes=20_000))
    shown(log, 30)
    shown(log, 1, user="too large")
    log.close()
    told = counts(telemetry)
    assert told["spilled"] > 0
    assert told["dropped"] > 0
    assert sum(told.values()) == 31
    assert not kafka.taken


def test_a_record_that_kafka_never_takes_stops_nothing(tmp_path, shown, until):
    kafka, telemetry = Kafka(), Telemetry()
    log = ImpressionLog(kafka, telemetry, spill=Spill(tmp_path / "spill"))
    shown(log, 1, user="too large")
    after = shown(log, 2)
    log.close()
    assert kafka.taken == after
    assert (telemetry.impressions("failed"), telemetry.impressions("logged")) == (1, 2)


def test_a_worker_takes_over_what_workers_that_are_no_more_have_left(tmp_path):
    """Each file by the one worker whose turn it is, whatever the number of workers was."""
    for number in range(5):
        spill = spill_of(tmp_path, 7, number, 5)
        assert spill.add(Record(f"u{number}", b"{}", number))
        spill.close()
    (other := spill_of(tmp_path, 70)).add(Record("another port's", b"{}", 0))
    other.close()
    opened = [spill_of(tmp_path, 7, number, 2) for number in range(2)]
    assert [[record.key for record in spill.head(9)] for spill in opened] == [["u0", "u2", "u4"], ["u1", "u3"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "impressions-7-1.spill", "impressions-7.spill", "impressions-70.spill",
    ]  # fmt: skip
    assert [[record.key for record in spill_of(tmp_path, 7).head(9)]] == [["u0", "u2", "u4", "u1", "u3"]]


def test_what_does_not_fit_stays_where_it_was(tmp_path):
    own, other = Spill(tmp_path / "own", most_bytes=100), Spill(tmp_path / "other")
    records = [Record(f"u{number}", b"{}" * 10, number) for number in range(6)]
    assert all(other.add(record) for record in records)
    own.take(other)
    taken = own.head(9)
    assert 0 < len(taken) < len(records)
    assert taken + other.head(9) == records
