"""Records of a topic with columns of its own, as its ``KafkaSource`` declares them: what counts.

The first rule that fails names the reason, as in :mod:`headwater.events`; the archive and the stream job both call
:func:`parse_record`. Only declared columns are looked at. The Kafka key is not needed: the key column says whose record
it is.

==================  ====================================================================================================
reason              a record is refused when
==================  ====================================================================================================
oversized           the value is longer than ``max_event_bytes``
malformed           the value is absent, or neither one JSON object in UTF-8 nor, where the source says so, one Avro
                    record (:mod:`headwater.avro`) of finite numbers; the event id is absent, null or empty, the
                    event time not an integer from 0 to 2**63 - 1, or a declared column neither null nor of its type
no_key              the key column is absent, null or empty
value_out_of_range  a ``double`` is not finite or its magnitude exceeds 9.2e12 (int64 at 1e-6 would overflow)
clock_skew          as in :mod:`headwater.events`; a smaller lead is cut to ``ingest_time``
too_late            as in :mod:`headwater.events`; the record still belongs in the archive
==================  ====================================================================================================

In JSON a ``bigint`` or ``int`` is a number without exponent whose fraction, if there is one, is zero (``5`` and
``5.00``, not ``5e0``), a ``boolean`` is true or false, a ``map<string,string>`` an object of strings.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headwater import avro, topics
from headwater.avro import MAP
from headwater.events import (
    MALFORMED,
    MAX_ABS_VALUE,
    NO_KEY,
    OVERSIZED,
    VALUE_OUT_OF_RANGE,
    BadRecord,
    EventLimits,
    check_times,
    read_object,
    shown,
)
from headwater.plan import Source

ENVELOPE = {
    "event_id": "string", "event_type": "string", "event_time": "bigint", "user_id": "string", "item_id": "string",
    "session_id": "string", "request_id": "string", "position": "int", "value": "double",
    "context": MAP,
}  # fmt: skip
"""Of the platform's own topic, whatever a definition declares of it."""
PLACE = {"ingest_time": "bigint", "partition": "int", "offset": "bigint"}
"""What the archive keeps of a record beside its columns."""
INTEGERS = {"bigint": 63, "int": 31}
"""Bits of a magnitude."""
_ARROW: Mapping[str, pa.DataType] = {
    "string": pa.string(), "bigint": pa.int64(), "int": pa.int32(), "double": pa.float64(), "boolean": pa.bool_(),
    MAP: pa.map_(pa.string(), pa.string()),
}  # fmt: skip
_WHOLE = re.compile(r"-?(\d+)(?:\.(0+))?")
_DECIMAL_DIGITS = 38
"""Beyond which a number that is written with a fraction is no integer."""


class Fraction(str):
    """A JSON number with a fraction or an exponent, as it is written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A record that counts: its declared columns, ``event_time`` (epoch ms) cut by ``cut_ms`` to the ingest time."""

    values: Mapping[str, Any]
    event_time: int
    cut_ms: int = 0


def is_envelope(source: Source) -> bool:
    """Whether a topic carries the platform's envelope, whose rules are then those of :mod:`headwater.events`."""
    roles = (source.event_id, source.event_time, source.key)
    whole = dict(source.columns) == ENVELOPE and roles == ("event_id", "event_time", "user_id")
    return source.format == "json" and (source.topic == topics.EVENTS or whole)


def parse_record(source: Source, raw: bytes | None, ingest_ms: int, limits: EventLimits) -> SourceRecord:
    """Read one record of a source by the rules of this module's table.

    Raises
    ------
    BadRecord
        And nothing else, whatever the bytes; a ``too_late`` one carries the record.
    """
    if raw is not None and len(raw) > limits.max_event_bytes:
        raise BadRecord(OVERSIZED, f"{len(raw)} bytes, {limits.max_event_bytes} are allowed")
    fields = read_object(_as_json(source, raw), parse_float=Fraction)
    values = {name: _typed(fields.get(name), name, kind) for name, kind in source.columns}
    event_time = values[source.event_time]
    if event_time is None or event_time < 0:
        raise BadRecord(MALFORMED, f"{source.event_time} is {shown(event_time)}, not an integer from 0 to 2**63 - 1")
    if values[source.event_id] in (None, ""):
        raise BadRecord(MALFORMED, f"{source.event_id} is missing")
    if values[source.key] in (None, ""):
        raise BadRecord(NO_KEY, f"{source.key} is missing, so the record is nobody's")
    for name, kind in source.columns:
        if kind == "double" and values[name] is not None and not abs(values[name]) <= MAX_ABS_VALUE:
            raise BadRecord(VALUE_OUT_OF_RANGE, f"{name} is {values[name]!r}, beyond {MAX_ABS_VALUE}")
    whole = SourceRecord(values, event_time)
    cut_ms = check_times(event_time, ingest_ms, limits, whole)
    if not cut_ms:
        return whole
    return SourceRecord({**values, source.event_time: ingest_ms}, ingest_ms, cut_ms)


def archive_schema(source: Source) -> pa.Schema:
    """Columns of a source as the archive stores them, then :data:`PLACE`."""
    kinds = {**dict(source.columns), **PLACE}
    return pa.schema([pa.field(name, _ARROW[kind]) for name, kind in kinds.items()])


def records_table(
    source: Source, records: Sequence[SourceRecord], ingest_ms: Sequence[int], partition: int, offsets: Sequence[int]
) -> pa.Table:
    """Lay out records of one partition as the archive stores them."""
    columns: dict[str, Any] = {name: [_stored(one.values[name]) for one in records] for name, _ in source.columns}
    columns |= {"ingest_time": ingest_ms, "partition": [partition] * len(records), "offset": offsets}
    return pa.table(columns, schema=archive_schema(source))


def write_record(source: Source, values: Mapping[str, Any]) -> bytes:
    """Write a record as its topic carries it; JSON leaves out columns without a value.

    Raises
    ------
    ValueError
        A value is not of its column's type.
    """
    if source.avro_schema is not None:
        return avro.encode(source.avro_schema, values)
    given = {name: value for name, value in values.items() if value is not None}
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _as_json(source: Source, raw: bytes | None) -> bytes | None:
    if raw is None or source.avro_schema is None:
        return raw
    decoded = avro.decoder(source.avro_schema, tuple(name for name, _ in source.columns))(raw)
    if decoded is None:
        raise BadRecord(MALFORMED, "the bytes are not one Avro record of the schema")
    return decoded


def _typed(value: Any, name: str, kind: str) -> Any:
    if value is None:
        return None
    if kind == "string" and type(value) is str:
        return value
    if kind in INTEGERS and (whole := _integer(value)) is not None and _fits(whole, INTEGERS[kind]):
        return whole
    if kind == "double" and (type(value) is int or isinstance(value, Fraction)):
        return _number(value)
    if kind == "boolean" and type(value) is bool:
        return value
    if kind == MAP and isinstance(value, dict) and all(type(held) is str for held in value.values()):
        return value
    raise BadRecord(MALFORMED, f"{name} is {shown(value)}, neither null nor {kind}")


def _integer(value: Any) -> int | None:
    if type(value) is int:
        return value
    match = _WHOLE.fullmatch(value) if isinstance(value, Fraction) else None
    if match is None:
        return None
    digits = len(match[2] or "") + (0 if match[1] == "0" else len(match[1]))
    return int(value.partition(".")[0]) if digits <= _DECIMAL_DIGITS else None


def _fits(value: int, bits: int) -> bool:
    return -(1 << bits) <= value < 1 << bits


def _number(value: int | str) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _stored(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value
