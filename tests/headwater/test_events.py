"""The envelope's rules, one by one, and against arbitrary bytes."""

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import events
from headwater.events import ARCHIVE_SCHEMA, EVENT_SCHEMA, BadRecord, Event, EventLimits, archive_table, parse_event

NOW = 1_511_000_000_000
LIMITS = EventLimits(horizon_ms=90 * 86_400_000)
GOOD: dict[str, Any] = {
    "event_id": "e1",
    "event_type": "purchase",
    "event_time": NOW - 5,
    "user_id": "7",
    "item_id": "42",
    "value": 1.5,
}

names = st.text(min_size=1).filter(lambda text: text.isprintable())
whole_events = st.builds(
    Event,
    event_id=names,
    event_type=st.from_regex(events.EVENT_TYPE_PATTERN, fullmatch=True),
    event_time=st.integers(NOW - 1_000_000, NOW),
    user_id=names,
    item_id=st.none() | names,
    session_id=st.none() | names,
    request_id=st.none() | names,
    position=st.none() | st.integers(-(2**31), 2**31 - 1),
    value=st.none() | st.floats(-events.MAX_ABS_VALUE, events.MAX_ABS_VALUE),
    context=st.dictionaries(st.text(), names, max_size=3),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def parse(changes: dict[str, Any], key: bytes | None = b"7", limits: EventLimits = LIMITS) -> Event:
    return parse_event(json.dumps(GOOD | changes).encode(), key, NOW, limits)


def reason_of(raw: bytes | None, key: bytes | None = b"7", limits: EventLimits = LIMITS) -> str:
    with pytest.raises(BadRecord) as caught:
        parse_event(raw, key, NOW, limits)
    return caught.value.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_id": ""}, events.MALFORMED),
        ({"event_id": 3}, events.MALFORMED),
        ({"event_type": None}, events.MALFORMED),
        ({"event_type": ""}, events.UNKNOWN_TYPE),
        ({"event_type": "Purchase"}, events.UNKNOWN_TYPE),
        ({"event_type": "purchase\n"}, events.UNKNOWN_TYPE),
        ({"event_type": "a" * 65}, events.UNKNOWN_TYPE),
        ({"event_time": "1511000000000"}, events.MALFORMED),
        ({"event_time": float(NOW)}, events.MALFORMED),
        ({"event_time": True}, events.MALFORMED),
        ({"event_time": -1}, events.MALFORMED),
        ({"event_time": 2**63}, events.MALFORMED),
        ({"event_time": NOW + 300_001}, events.CLOCK_SKEW),
        ({"event_time": NOW - LIMITS.horizon_ms - 1}, events.TOO_LATE),
        ({"user_id": None}, events.NO_KEY),
        ({"user_id": ""}, events.NO_KEY),
        ({"user_id": 7}, events.MALFORMED),
        ({"item_id": 42}, events.MALFORMED),
        ({"position": 1.0}, events.MALFORMED),
        ({"position": 2**31}, events.MALFORMED),
        ({"value": "1.5"}, events.MALFORMED),
        ({"value": True}, events.MALFORMED),
        ({"value": 9.3e12}, events.VALUE_OUT_OF_RANGE),
        ({"value": -(10**400)}, events.VALUE_OUT_OF_RANGE),
        ({"value": math.nan}, events.MALFORMED),
        ({"context": {"store": 3}}, events.MALFORMED),
        ({"context": ["store"]}, events.MALFORMED),
        ({"item_id": "\ud800"}, events.MALFORMED),
    ],
)
def test_each_rule_names_its_reason(changes: dict[str, Any], reason: str) -> None:
    assert reason_of(json.dumps(GOOD | changes).encode()) == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, events.MALFORMED),
        (b"", events.MALFORMED),
        (b"[]", events.MALFORMED),
        (b"\xff\xfe", events.MALFORMED),
        (b'{"event_id"', events.MALFORMED),
        (b"[" * 60_000, events.MALFORMED),
        (b"{" + b"1" * 6_000 + b"}", events.MALFORMED),
        (json.dumps(GOOD).encode().replace(b"1.5", b"1e999"), events.VALUE_OUT_OF_RANGE),
        (json.dumps(GOOD).encode().replace(b"1.5", b"9" * 5_000), events.MALFORMED),
        (b" " * 65_537, events.OVERSIZED),
    ],
)
def test_bytes_that_are_no_event(raw: bytes | None, reason: str) -> None:
    assert reason_of(raw) == reason


@pytest.mark.parametrize("key", [None, b""])
def test_a_record_without_a_kafka_key_is_refused(key: bytes | None) -> None:
    assert reason_of(json.dumps(GOOD).encode(), key) == events.NO_KEY


def test_a_fast_clock_is_cut_to_the_arrival() -> None:
    event = parse({"event_time": NOW + 300_000})
    assert (event.event_time, event.cut_ms) == (NOW, 300_000)


def test_a_late_event_is_handed_over_with_its_refusal() -> None:
    with pytest.raises(BadRecord) as caught:
        parse({"event_time": 0})
    assert caught.value.event == Event(**GOOD | {"event_time": 0})
    assert parse({"event_time": 0}, limits=EventLimits()).event_time == 0


def test_what_is_not_known_is_ignored_and_what_is_absent_is_null() -> None:
    assert parse({"colour": ["red"], "context": None, "position": None}) == Event(**GOOD)


@settings(deadline=None)
@given(whole_events)
def test_json_round_trip(event: Event) -> None:
    assert parse_event(event.to_json(), b"k", NOW, LIMITS) == event


@settings(deadline=None)
@given(whole_events)
def test_arrow_round_trip(event: Event) -> None:
    row = archive_table([event], [NOW], 1, [9]).to_pylist()[0]
    assert Event(**{name: row[name] for name in EVENT_SCHEMA.names} | {"context": dict(row["context"])}) == event


@settings(deadline=None)
@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_raise_nothing_but_bad_record(raw: bytes) -> None:
    with pytest.raises(BadRecord):
        parse_event(raw, b"k", NOW, LIMITS)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(EVENT_SCHEMA.names), json_values))
def test_arbitrary_fields_give_an_event_that_can_be_stored_or_bad_record(changes: dict[str, Any]) -> None:
    try:
        event = parse(changes)
    except BadRecord:
        return
    assert archive_table([event], [NOW], 0, [0]).schema == ARCHIVE_SCHEMA


def test_schema_and_dataclass_agree() -> None:
    assert EVENT_SCHEMA.names == [name for name in Event.__slots__ if name != "cut_ms"]
    assert ARCHIVE_SCHEMA.names[: len(EVENT_SCHEMA)] == EVENT_SCHEMA.names
    assert ARCHIVE_SCHEMA.field("partition").type == pa.int32()


def test_event_hash_is_48_bits_of_md5() -> None:
    assert events.event_hash("cj-0") == 0x6EF37C7E040C
