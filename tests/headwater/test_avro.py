"""Avro records against another implementation of Avro, Apache's own."""

import json
from io import BytesIO

import avro.io
import avro.schema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.avro import decoder, encode, read_schema
from headwater.errors import DefinitionError

TRIP = {
    "type": "record", "name": "Trip", "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "rider", "type": ["null", "string"], "default": None},
        {"name": "mode", "type": {"type": "enum", "name": "Mode", "symbols": ["walk", "bike"]}},
        {"name": "fare", "type": ["null", "double"]},
        {"name": "tags", "type": {"type": "map", "values": "string"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "paid", "type": "boolean"},
        {"name": "either", "type": ["string", "long"]},
        {"name": "stops", "type": {"type": "array", "items": "int"}},
        {"name": "seats", "type": "int"},
    ],
}  # fmt: skip
SCHEMA, COLUMNS = read_schema("trips", json.dumps(TRIP), "at")
decode = decoder(SCHEMA, tuple(COLUMNS))
trips = st.fixed_dictionaries({
    "id": st.text(), "at": st.integers(-(2**63), 2**63 - 1), "rider": st.none() | st.text(),
    "mode": st.sampled_from(["walk", "bike"]), "fare": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "tags": st.dictionaries(st.text(), st.text(), max_size=3), "price": st.binary(max_size=5), "paid": st.booleans(),
    "either": st.text() | st.integers(-(2**63), 2**63 - 1), "stops": st.lists(st.integers(-9, 9), max_size=3),
    "seats": st.integers(-(2**31), 2**31 - 1),
})  # fmt: skip


def written(trip) -> bytes:
    stream = BytesIO()
    avro.io.DatumWriter(avro.schema.parse(SCHEMA)).write(trip, avro.io.BinaryEncoder(stream))
    return stream.getvalue()


def test_fields_that_no_column_can_hold_are_left():
    assert COLUMNS == {
        "id": "string", "at": "bigint", "rider": "string", "mode": "string", "fare": "double",
        "tags": "map<string,string>", "paid": "boolean", "seats": "int",
    }  # fmt: skip


@given(trips)
def test_a_record_that_apache_avro_wrote_is_read_to_the_last_bit(trip):
    assert json.loads(decode(written(trip))) == {name: trip[name] for name in COLUMNS}


@given(trips)
def test_what_is_written_here_apache_avro_reads(trip):
    reader = avro.io.DatumReader(avro.schema.parse(SCHEMA))
    assert reader.read(avro.io.BinaryDecoder(BytesIO(encode(SCHEMA, trip)))) == trip


@given(trips, st.data())
def test_a_record_cut_or_continued_is_none(trip, data):
    raw = written(trip)
    assert decode(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None
    assert decode(raw + data.draw(st.binary(min_size=1, max_size=9))) is None


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_read_or_are_none(raw):
    told = decode(raw)
    assert told is None or json.loads(told).keys() == COLUMNS.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id string", "not the Avro schema of a record"),
        ('{"type": "string"}', "not the Avro schema of a record"),
        ('{"type": "record", "name": "R", "fields": [{"name": "x", "type": "unknown"}]}', "UnknownType"),
        (json.dumps(TRIP).replace("timestamp-millis", "timestamp-micros"), "at is a timestamp-micros"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(text, said):
    with pytest.raises(DefinitionError, match=r"^trips: ") as refusal:
        read_schema("trips", text, "at")
    assert said in str(refusal.value)


def test_what_the_schema_asks_for_and_a_row_lacks_is_said():
    with pytest.raises(ValueError, match=r"\w"):
        encode(SCHEMA, {"id": "t"})
