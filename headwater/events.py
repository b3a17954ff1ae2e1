"""The event envelope: what a record must be to count, at rest, in Python and on the wire.

Validity, in the order in which it is checked; the first rule that fails names the reason. The archive and the stream
job both call :func:`parse_event`, so that all fold the same events.

==================  ====================================================================================================
reason              a record is refused when
==================  ====================================================================================================
oversized           the value is longer than ``max_event_bytes``
malformed           the value is absent, not UTF-8 or not one JSON object (NaN and Infinity are not JSON), or
                    ``event_id`` is not a non-empty string, ``event_type`` not a string, ``event_time`` not an integer
                    from 0 to 2**63 - 1, ``user_id`` neither string nor null, ``item_id``, ``session_id`` or
                    ``request_id`` neither string nor null, ``position`` neither null nor an integer of 32 bits,
                    ``value`` neither null nor a number, ``context`` neither null nor an object of strings
no_key              the Kafka key is absent or empty, or ``user_id`` is absent, null or empty
unknown_type        ``event_type`` is not ``[a-z][a-z0-9_]{0,63}``
value_out_of_range  ``value`` is not finite in float64, or its magnitude exceeds 9.2e12 (int64 at 1e-6 would overflow)
clock_skew          ``event_time - ingest_time`` exceeds ``max_clock_skew_ms``; a smaller lead is cut to ``ingest_time``
too_late            ``ingest_time - event_time`` exceeds ``horizon_ms``; the event still belongs in the archive
==================  ====================================================================================================

Unknown fields are ignored, an absent field is a null one, of a repeated field the last counts, numbers written as
strings are not numbers, and true and false are not integers.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import md5
from typing import Any, NoReturn

import pyarrow as pa

from headwater.errors import DataError
from headwater.settings import Settings

MALFORMED = "malformed"
OVERSIZED = "oversized"
NO_KEY = "no_key"
UNKNOWN_TYPE = "unknown_type"
VALUE_OUT_OF_RANGE = "value_out_of_range"
CLOCK_SKEW = "clock_skew"
TOO_LATE = "too_late"
REASONS = (OVERSIZED, MALFORMED, NO_KEY, UNKNOWN_TYPE, VALUE_OUT_OF_RANGE, CLOCK_SKEW, TOO_LATE)

EVENT_TYPE_PATTERN = "[a-z][a-z0-9_]{0,63}"
MAX_ABS_VALUE = 9.2e12
HISTORIC_PARTITION = -1

_EVENT_TYPE = re.compile(EVENT_TYPE_PATTERN)

EVENT_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("value", pa.float64()),
        pa.field("context", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
ARCHIVE_SCHEMA = pa.schema(
    [
        *EVENT_SCHEMA,
        pa.field("ingest_time", pa.int64(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did; fields in the order of ``EVENT_SCHEMA``, times in epoch milliseconds UTC."""

    event_id: str
    event_type: str
    event_time: int
    user_id: str
    item_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    position: int | None = None
    value: float | None = None
    context: dict[str, str] = field(default_factory=dict)
    cut_ms: int = field(default=0, compare=False)
    """How far the sender's clock was ahead, where ``event_time`` was cut to the ingest time."""

    def to_json(self) -> bytes:
        """Write the envelope as the topic carries it; fields without a value are left out."""
        given = {name: value for name in EVENT_SCHEMA.names if (value := getattr(self, name)) is not None}
        if not self.context:
            del given["context"]
        return json.dumps(given, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class EventLimits:
    """What bounds a record; ``horizon_ms`` None means that no event is too late."""

    max_event_bytes: int = 65_536
    max_clock_skew_ms: int = 300_000
    horizon_ms: int | None = None

    @classmethod
    def of(cls, settings: Settings, horizon_ms: int | None = None) -> "EventLimits":
        return cls(settings.max_event_bytes, settings.max_clock_skew_s * 1000, horizon_ms)


class BadRecord(DataError):
    """A record that does not count: one of ``REASONS``, with a detail for a person.

    A ``too_late`` record carries what was read of it as ``event``, which is archived all the same.
    """

    def __init__(self, reason: str, detail: str, event: Any = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.event = event


def parse_event(raw: bytes | None, key: bytes | None, ingest_ms: int, limits: EventLimits) -> Event:
    """Read one record by the rules of this module's table.

    Raises
    ------
    BadRecord
        And nothing else, whatever the bytes.
    """
    if raw is not None and len(raw) > limits.max_event_bytes:
        raise BadRecord(OVERSIZED, f"{len(raw)} bytes, {limits.max_event_bytes} are allowed")
    fields = read_object(raw)
    event = Event(
        event_id=_required_text(fields, "event_id"),
        event_type=_required_text(fields, "event_type", empty_is_text=True),
        event_time=_integer(fields, "event_time", 0, 2**63 - 1),
        user_id=_text(fields, "user_id") or "",
        item_id=_text(fields, "item_id"),
        session_id=_text(fields, "session_id"),
        request_id=_text(fields, "request_id"),
        position=None if fields.get("position") is None else _integer(fields, "position", -(2**31), 2**31 - 1),
        value=_number(fields, "value"),
        context=_context(fields),
    )
    if not key or not event.user_id:
        raise BadRecord(NO_KEY, "the Kafka key and user_id name who did it; one of them is missing")
    if _EVENT_TYPE.fullmatch(event.event_type) is None:
        raise BadRecord(UNKNOWN_TYPE, f"event_type {event.event_type[:80]!r} is not {EVENT_TYPE_PATTERN}")
    if event.value is not None and not abs(event.value) <= MAX_ABS_VALUE:
        raise BadRecord(VALUE_OUT_OF_RANGE, f"value {event.value!r} is beyond {MAX_ABS_VALUE}")
    return _in_time(event, ingest_ms, limits)


def event_hash(event_id: str) -> int:
    """Return 48 bits of MD5 over the UTF-8 id, which Spark SQL computes alike."""
    return int(md5(event_id.encode(), usedforsecurity=False).hexdigest()[:12], 16)


def archive_table(
    events: Sequence[Event], ingest_ms: Sequence[int], partition: int, offsets: Sequence[int]
) -> pa.Table:
    """Lay out events of one partition as the archive stores them (``ARCHIVE_SCHEMA``)."""
    columns: dict[str, Any] = {
        name: [getattr(event, name) for event in events] for name in EVENT_SCHEMA.names if name != "context"
    }
    columns["context"] = [list(event.context.items()) for event in events]
    columns |= {"ingest_time": ingest_ms, "partition": [partition] * len(events), "offset": offsets}
    return pa.table(columns, schema=ARCHIVE_SCHEMA)


def check_times(event_time: int, ingest_ms: int, limits: EventLimits, event: Any) -> int:
    """Return by how many milliseconds the event time is to be cut to the ingest time; 0 for nearly every record.

    Raises
    ------
    BadRecord
        It is too far ahead of its arrival, or too far behind; the latter carries ``event``.
    """
    lead = event_time - ingest_ms
    if lead > limits.max_clock_skew_ms:
        raise BadRecord(CLOCK_SKEW, f"event_time is {lead} ms ahead of arrival, {limits.max_clock_skew_ms} are allowed")
    if limits.horizon_ms is not None and -lead > limits.horizon_ms:
        raise BadRecord(TOO_LATE, f"event_time is {-lead} ms before arrival, views reach {limits.horizon_ms}", event)
    return max(lead, 0)


def _in_time(event: Event, ingest_ms: int, limits: EventLimits) -> Event:
    cut_ms = check_times(event.event_time, ingest_ms, limits, event)
    return replace(event, event_time=ingest_ms, cut_ms=cut_ms) if cut_ms else event


def read_object(raw: bytes | None, parse_float: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Read one JSON object; ``parse_float`` makes something else than floats of its fractions.

    Raises
    ------
    BadRecord
        The bytes are anything else.
    """
    if raw is None:
        raise BadRecord(MALFORMED, "no value")
    try:
        text = raw.decode("utf-8")
        fields = _decoder(parse_float).decode(text)
        if "\\u" in text:
            json.dumps(fields, ensure_ascii=False).encode()  # refuses half a surrogate pair, which no store can hold
    except (ValueError, RecursionError) as error:
        raise BadRecord(MALFORMED, f"not JSON: {str(error)[:120] or type(error).__name__}") from None
    if not isinstance(fields, dict):
        raise BadRecord(MALFORMED, f"a JSON {type(fields).__name__}, not an object")
    return fields


@cache
def _decoder(parse_float: Callable[[str], Any] | None) -> json.JSONDecoder:
    """Kept, since ``json.loads`` makes one for each text that it reads with options."""
    return json.JSONDecoder(parse_constant=_not_json, parse_float=parse_float)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise BadRecord(MALFORMED, f"{name} is {shown(value)}, not a string")


def _required_text(fields: dict[str, Any], name: str, empty_is_text: bool = False) -> str:
    value = _text(fields, name)
    if value is None or not (value or empty_is_text):
        raise BadRecord(MALFORMED, f"{name} is missing")
    return value


def _integer(fields: dict[str, Any], name: str, lowest: int, highest: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise BadRecord(MALFORMED, f"{name} is {shown(value)}, not an integer from {lowest} to {highest}")
    return value


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None or type(value) is float:
        return value
    if type(value) is not int:
        raise BadRecord(MALFORMED, f"{name} is {shown(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _context(fields: dict[str, Any]) -> dict[str, str]:
    value = fields.get("context")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise BadRecord(MALFORMED, f"context is {shown(value)}, not an object of strings")
    return value


def shown(value: object) -> str:
    """Cut what is quoted: an integer of thousands of digits has no repr."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return f"an enormous {type(value).__name__}"
