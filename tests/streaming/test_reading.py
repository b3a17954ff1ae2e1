"""What the stream reads of records is what the archive keeps of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import avro
from headwater.events import BadRecord, Event, EventLimits, event_hash, parse_event
from headwater.forgotten import KeyColumn, Tombstone
from headwater.plan import Source
from headwater.records import ENVELOPE
from streaming.reading import MARKS, RecordReader

NOW = 1_700_000_000_000
LIMITS = EventLimits(horizon_ms=3_600_000)
EVENTS = Source(
    name="events", topic="events", columns=tuple(ENVELOPE.items()), event_id="event_id", event_time="event_time",
    key="user_id",
)  # fmt: skip
NEEDED = ("context.a kind", "context.size", "event_time", "event_type", "item_id", "position", "user_id", "value")

fields = st.fixed_dictionaries(
    {
        "event_id": st.sampled_from(["e1", "é\x00", "", None, 7]),
        "event_type": st.sampled_from(["purchase", "View", None]),
        "event_time": st.sampled_from([NOW, NOW + 5_000, NOW + 400_000, NOW - 3_600_001, -1, "now", 2**63]),
        "user_id": st.sampled_from(["u", "", None, 5]),
    },
    optional={
        "item_id": st.sampled_from(["p1", None, 5]),
        "position": st.sampled_from([1, None, 1.5, 2**31]),
        "value": st.sampled_from([1.5, 2, None, "2", 9.3e12]),
        "context": st.sampled_from([{}, {"a kind": "x"}, {"size": "9", "else": "?"}, {"size": 9}, None]),
    },
)
keys = st.sampled_from([b"u", b"", None])
records = st.one_of(fields.map(json.dumps).map(str.encode), st.sampled_from([None, b"", b"{", b"[]", b"\xff"]))


def row(read: dict, at: int = 0) -> dict:
    return {name: column[at] for name, column in read.items()}


@given(st.lists(st.tuples(keys, records), min_size=1, max_size=5))
def test_a_batch_has_what_counts_of_each_record_and_nulls_for_what_does_not(batch):
    read = RecordReader(EVENTS, NEEDED, LIMITS).read(*zip(*[(key, raw, NOW, 0, 0) for key, raw in batch], strict=True))
    for at, (key, raw) in enumerate(batch):
        found = row(read, at)
        try:
            event = parse_event(raw, key, NOW, LIMITS)
        except BadRecord:
            assert set(found.values()) == {None}
            continue
        assert (found.pop("hw_id"), found.pop("hw_hash")) == (event.event_id, event_hash(event.event_id))
        assert (found.pop("hw_time"), found.pop("hw_ingest")) == (event.event_time, NOW)
        assert (found.pop("context.a kind"), found.pop("context.size")) == (
            event.context.get("a kind"), event.context.get("size"),
        )  # fmt: skip
        assert found == {name: getattr(event, name) for name in found}


def test_types_name_what_is_read_in_its_order():
    reader = RecordReader(EVENTS, NEEDED, LIMITS)
    raw = Event("e", "purchase", NOW, "u", context={"size": "9"}).to_json()
    assert list(reader.read([b"u"], [raw], [NOW], [0], [0])) == list(reader.types)
    assert reader.types["position"] == "INT"
    assert reader.types["context.size"] == "STRING"
    assert list(reader.types)[: len(MARKS)] == list(MARKS)


def sensors(**changes) -> Source:
    return Source(
        name="sensors", topic="sensors", columns=(("reading", "bigint"), ("at", "bigint"), ("sensor", "string"),
        ("labels", "map<string,string>")), event_id="reading", event_time="at", key="sensor",
    ).model_copy(update=changes)  # fmt: skip


def test_an_integer_id_is_its_digits_and_the_time_is_cut_to_the_arrival():
    reader = RecordReader(sensors(), ("at", "reading"), LIMITS)
    found = row(
        reader.read([None], [json.dumps({"reading": 7, "at": NOW + 9, "sensor": "s"}).encode()], [NOW], [0], [0])
    )
    assert found["hw_id"] == "7"
    assert found["reading"] == 7
    assert found["hw_time"] == found["at"] == found["hw_ingest"] == NOW


@pytest.mark.parametrize(
    ("labels", "there", "kind"), [(None, None, None), ({}, True, None), ({"kind": "x"}, True, "x")]
)
def test_of_a_map_its_entries_are_read_and_of_a_whole_map_whether_there_is_one(labels, there, kind):
    reader = RecordReader(sensors(), ("labels", "labels.kind"), LIMITS)
    raw = json.dumps({"reading": 7, "at": NOW, "sensor": "s", "labels": labels}).encode()
    found = row(reader.read([None], [raw], [NOW], [0], [0]))
    assert (found["labels"], found["labels.kind"]) == (there, kind)


def test_avro_records_are_read_by_their_schema():
    text = (
        '{"type": "record", "name": "T", "fields": [{"name": "id", "type": "string"}, {"name": "at", "type": "long"},'
        ' {"name": "who", "type": ["null", "string"]}]}'
    )
    schema, columns = avro.read_schema("trips", text, "at")
    trips = sensors(columns=tuple(columns.items()), event_id="id", key="who", format="avro", avro_schema=schema)
    records = [avro.encode(text, {"id": "t", "at": NOW, "who": who}) for who in ("r", None)]
    read = RecordReader(trips, ("who",), LIMITS).read([None, None], records, [NOW, NOW], [0, 0], [0, 1])
    assert row(read, 0)["who"] == "r"
    assert set(row(read, 1).values()) == {None}


@pytest.mark.parametrize(
    ("place", "value"), [(KeyColumn("user_id"), "u"), (KeyColumn("context", "size"), "9"), (KeyColumn("position"), "3")]
)
def test_records_of_who_is_forgotten_count_from_the_tombstones_offsets_on(place, value):
    tombstones = tuple(
        (place, Tombstone("whose", name, NOW, {"events": {0: 5, 1: 2}})) for name in (value, "somebody else")
    )
    records = [Event(f"e{at}", "purchase", NOW, "u", position=3, context={"size": "9"}).to_json() for at in range(6)]
    read = RecordReader(EVENTS, NEEDED, LIMITS, tombstones).read(
        [b"u"] * 6, records, [NOW] * 6, [0, 0, 0, 1, 1, 2], [4, 5, 6, 1, 2, 0]
    )
    assert read["hw_id"] == (None, "e1", "e2", None, "e4", "e5")
