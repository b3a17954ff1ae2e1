"""A user's own columns as the event envelope."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from headwater.errors import ConfigError, DataError
from headwater.events import EVENT_SCHEMA, MALFORMED, BadRecord, Event

CONTEXT = "context"
INGEST_TIME = "ingest_time"
REQUIRED = ("event_time", "user_id")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which column holds which field of the envelope; a field not named is read from the column of its own name.

    Ids may be strings or integers, times are epoch milliseconds or timestamps (ISO 8601 in text; without a zone they
    are read as UTC), an empty text is nothing. ``context.x`` puts one column into the context as ``x``.
    """

    columns: Mapping[str, str]
    event_type: str = "purchase"

    @classmethod
    def parse(cls, text: str | None, event_type: str = "purchase", ingest_time: str | None = None) -> "ColumnMap":
        """Read ``event_id=line,context.store=shop``.

        Raises
        ------
        ConfigError
            A part has no ``=``, or names no field of the envelope.
        """
        columns = {}
        for part, field, column in pairs(text):
            known = field in EVENT_SCHEMA.names or field.startswith(f"{CONTEXT}.")
            if not (column and known):
                raise ConfigError(
                    f"--map {part}: not FIELD=COLUMN with one of {', '.join(EVENT_SCHEMA.names)}, context.NAME. "
                    "Mend that part."
                )
            columns[field] = column
        if ingest_time:
            columns[INGEST_TIME] = ingest_time
        return cls(columns, event_type)

    def check(self, present: Iterable[str], subject: str) -> None:
        """Refuse a file that lacks what the map needs, before any of it is sent.

        Raises
        ------
        DataError
            Names the missing column and those there are.
        """
        there = list(present)
        for field in (*REQUIRED, *self.columns):
            if self.columns.get(field, field) not in there:
                raise DataError(
                    f"{subject}: no column {self.columns.get(field, field)} for {field}, there are {', '.join(there)}. "
                    f"Name it with --map {field}=COLUMN."
                )

    def event(self, row: Mapping[str, Any], event_id: str) -> Event:
        """Make one row an event; ``event_id`` is for rows that carry none.

        Raises
        ------
        BadRecord
            A value is not of its field's kind.
        """
        return Event(
            event_id=self._id(row, "event_id") or event_id,
            event_type=self._id(row, "event_type") or self.event_type,
            event_time=self.time_ms(row, "event_time"),
            user_id=self._id(row, "user_id") or "",
            item_id=self._id(row, "item_id"),
            session_id=self._id(row, "session_id"),
            request_id=self._id(row, "request_id"),
            position=whole(self._of(row, "position"), "position"),
            value=real(self._of(row, "value"), "value"),
            context=self._context(row),
        )

    def time_ms(self, row: Mapping[str, Any], field: str) -> int:
        """Epoch milliseconds of a field that must be there."""
        return time_ms(self._of(row, field), field)

    def _of(self, row: Mapping[str, Any], field: str) -> Any:
        value = row.get(self.columns.get(field, field))
        return None if value == "" else value

    def _id(self, row: Mapping[str, Any], field: str) -> str | None:
        return identifier(self._of(row, field), field)

    def _context(self, row: Mapping[str, Any]) -> dict[str, str]:
        given = entries(self._of(row, CONTEXT), CONTEXT) or {}
        for field, column in self.columns.items():
            if field.startswith(f"{CONTEXT}."):
                value = identifier(None if row.get(column) == "" else row.get(column), field)
                given = {name: held for name, held in given.items() if name != field.removeprefix(f"{CONTEXT}.")}
                if value is not None:
                    given[field.removeprefix(f"{CONTEXT}.")] = value
        return given


def pairs(text: str | None) -> Iterator[tuple[str, str, str]]:
    """Read ``a=x,b=y``: each part, what is left of its ``=`` and what is right of it."""
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        left, _, right = (side.strip() for side in part.partition("="))
        yield part, left, right


def time_ms(value: Any, field: str) -> int:
    """Epoch milliseconds of an integer or a timestamp; without a zone it is UTC.

    Raises
    ------
    BadRecord
        It is neither, or nothing.
    """
    if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise BadRecord(MALFORMED, f"{field} is {value[:40]!r}, no time") from None
    if isinstance(value, datetime):
        zoned = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        since = zoned - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    milliseconds = whole(value, field)
    if milliseconds is None:
        raise BadRecord(MALFORMED, f"{field} is missing")
    return milliseconds


def entries(value: Any, field: str) -> dict[str, str] | None:
    """Entries of a map: an object, its JSON, or Parquet's pairs; those without a value are left out.

    Raises
    ------
    BadRecord
        It is none of these, or holds more than texts and integers.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRecord(MALFORMED, f"{field} is {value[:40]!r}, not a JSON object") from None
    if isinstance(value, list) and all(isinstance(entry, tuple) for entry in value):  # Parquet's maps are pairs
        value = dict(value)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRecord(MALFORMED, f"{field} is a {type(value).__name__}, not an object")
    named = {str(name): identifier(held, f"{field}.{name}") for name, held in value.items()}
    return {name: held for name, held in named.items() if held is not None}


def identifier(value: Any, field: str) -> str | None:
    """Return a text, an integer in its digits."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRecord(MALFORMED, f"{field} is a {type(value).__name__}, neither a string nor an integer")


def whole(value: Any, field: str) -> int | None:
    """Return an integer, also one that is written as a text or a float."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
            return int(value)
    except ValueError:
        pass
    raise BadRecord(MALFORMED, f"{field} is {str(value)[:40]!r}, not an integer")


def real(value: Any, field: str) -> float | None:
    """Return a number, also one that is written as a text."""
    if value is None:
        return None
    try:
        if not isinstance(value, bool | list | dict):
            return float(value)
    except (ValueError, TypeError, OverflowError):
        pass
    raise BadRecord(MALFORMED, f"{field} is {str(value)[:40]!r}, not a number")
