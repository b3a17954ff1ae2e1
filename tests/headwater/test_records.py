"""What counts of a topic with columns of its own; tests/streaming/test_stream_job.py holds the stream to the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import events, records
from headwater.events import BadRecord, EventLimits
from headwater.plan import Source
from headwater.records import parse_record, records_table, write_record

NOW = 1_700_000_000_000
LIMITS = EventLimits(horizon_ms=86_400_000)
SOURCE = Source(
    name="orders", topic="orders", event_id="id", event_time="at", key="shop",
    columns=(("id", "bigint"), ("at", "bigint"), ("shop", "string"), ("total", "double"), ("lines", "int"),
             ("paid", "boolean"), ("labels", records.MAP)),
)  # fmt: skip
GOOD = {"id": 5, "at": NOW - 10, "shop": "north"}


def parsed(raw: bytes | None, ingest_ms: int = NOW):
    return parse_record(SOURCE, raw, ingest_ms, LIMITS)


def with_literal(name: str, literal: str) -> bytes:
    return json.dumps({**GOOD, name: "?"}).replace('"?"', literal).encode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, events.MALFORMED),
        ({"id": "5"}, events.MALFORMED),
        ({"at": None}, events.MALFORMED),
        ({"at": -1}, events.MALFORMED),
        ({"at": True}, events.MALFORMED),
        ({"shop": 5}, events.MALFORMED),
        ({"shop": ""}, events.NO_KEY),
        ({"shop": None}, events.NO_KEY),
        ({"total": "12"}, events.MALFORMED),
        ({"total": 1e13}, events.VALUE_OUT_OF_RANGE),
        ({"total": 10**400}, events.VALUE_OUT_OF_RANGE),
        ({"lines": 2**31}, events.MALFORMED),
        ({"lines": 1.5}, events.MALFORMED),
        ({"paid": 1}, events.MALFORMED),
        ({"labels": {"a": 1}}, events.MALFORMED),
        ({"labels": []}, events.MALFORMED),
        ({"at": NOW + LIMITS.max_clock_skew_ms + 1}, events.CLOCK_SKEW),
        ({"at": NOW - 86_400_001}, events.TOO_LATE),
        ({"shop": "x" * 70_000}, events.OVERSIZED),
    ],
)
def test_a_record_is_refused_for_the_first_rule_it_breaks(changes, reason):
    with pytest.raises(BadRecord) as refusal:
        parsed(json.dumps(GOOD | changes).encode())
    assert refusal.value.reason == reason
    assert (refusal.value.event is not None) == (reason == events.TOO_LATE)


@pytest.mark.parametrize(
    ("literal", "value"),
    [("5", 5), ("5.0", 5), ("-3.000", -3), ("-0.0", 0), (f"1.{'0' * 37}", 1), ("5e0", None), (f"1.{'0' * 38}", None),
     (f"0.{'0' * 38}", 0), (f"0.{'0' * 39}", None)],
)  # fmt: skip
def test_an_integer_is_a_number_without_exponent_whose_fraction_is_zero(literal, value):
    if value is None:
        with pytest.raises(BadRecord):
            parsed(with_literal("lines", literal))
    else:
        assert parsed(with_literal("lines", literal)).values["lines"] == value


def test_a_lead_is_cut_to_the_arrival_and_unknown_fields_are_ignored():
    read = parsed(json.dumps({**GOOD, "at": NOW + 7, "more": {"at": 1.5}}).encode())
    assert (read.event_time, read.cut_ms, read.values["at"]) == (NOW, 7, NOW)


@given(st.binary(max_size=60) | st.dictionaries(st.sampled_from(list(GOOD)), st.integers() | st.text()).map(
    lambda fields: json.dumps(fields).encode()))  # fmt: skip
def test_whatever_the_bytes_a_record_counts_or_says_why_not(raw):
    reason = ""
    try:
        held = parsed(raw).values
    except BadRecord as bad:
        reason, held = bad.reason, {}
    assert (reason in events.REASONS) != (held.keys() >= GOOD.keys())


@given(
    st.fixed_dictionaries(
        {"id": st.integers(-(2**63), 2**63 - 1), "at": st.integers(NOW - 1000, NOW), "shop": st.text(min_size=1)},
        optional={
            "total": st.floats(-9e12, 9e12), "lines": st.integers(-(2**31), 2**31 - 1), "paid": st.booleans(),
            "labels": st.dictionaries(st.text(), st.text(), max_size=3),
        },
    )
)  # fmt: skip
def test_what_is_written_is_read_and_archived_as_it_was(values):
    read = parsed(write_record(SOURCE, values))
    assert {name: value for name, value in read.values.items() if value is not None} == values
    (row,) = records_table(SOURCE, [read], [NOW], 3, [17]).to_pylist()
    labels = row.pop("labels")
    assert row == {name: read.values.get(name) for name in row if name in read.values} | {
        "ingest_time": NOW, "partition": 3, "offset": 17,
    }  # fmt: skip
    assert (None if labels is None else dict(labels)) == read.values["labels"]
