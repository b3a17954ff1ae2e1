"""A user's own columns as those of a topic that is not the platform's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.avro import MAP
from headwater.datasets.columns import INGEST_TIME, entries, identifier, pairs, real, time_ms, whole
from headwater.errors import ConfigError, DataError
from headwater.events import MALFORMED, BadRecord
from headwater.plan import Source
from headwater.records import INTEGERS


@dataclass(frozen=True, slots=True)
class SourceMap:
    """Which column of a file holds which column of a topic; one that is not named is read from that of its own name.

    Values are taken as :class:`headwater.datasets.columns.ColumnMap` takes them; the event time may be a timestamp.
    """

    source: Source
    columns: Mapping[str, str]

    @classmethod
    def parse(cls, source: Source, text: str | None, ingest_time: str | None = None) -> "SourceMap":
        """Read ``id=line,amount=total``.

        Raises
        ------
        ConfigError
            A part has no ``=``, or names no column of the topic.
        """
        known = [name for name, _ in source.columns]
        columns = {}
        for part, name, column in pairs(text):
            if not column or name not in known:
                raise ConfigError(f"--map {part}: not FIELD=COLUMN with one of {', '.join(known)}. Mend that part.")
            columns[name] = column
        return cls(source, columns | ({INGEST_TIME: ingest_time} if ingest_time else {}))

    def check(self, present: Iterable[str], subject: str) -> None:
        """Refuse a file that lacks what the map needs, before any of it is sent.

        Raises
        ------
        DataError
            Names the missing column and those there are.
        """
        there = list(present)
        for name in (self.source.event_time, self.source.key, *self.columns):
            if self.columns.get(name, name) not in there:
                raise DataError(
                    f"{subject}: no column {self.columns.get(name, name)} for {name}, there are {', '.join(there)}. "
                    f"Name it with --map {name}=COLUMN."
                )

    def values(self, row: Mapping[str, Any], event_id: str) -> dict[str, Any]:
        """Make one row a record; ``event_id`` is for rows that carry none, where the topic's ids are texts.

        Raises
        ------
        BadRecord
            A value is not of its column's kind.
        """
        values = {name: self._typed(row, name, kind) for name, kind in self.source.columns}
        if values[self.source.event_id] is None and dict(self.source.columns)[self.source.event_id] == "string":
            values[self.source.event_id] = event_id
        return values

    def time_ms(self, row: Mapping[str, Any], field: str) -> int:
        """Epoch milliseconds of a field that must be there."""
        return time_ms(self._of(row, field), field)

    def _of(self, row: Mapping[str, Any], field: str) -> Any:
        value = row.get(self.columns.get(field, field))
        return None if value == "" else value

    def _typed(self, row: Mapping[str, Any], name: str, kind: str) -> Any:
        value = self._of(row, name)
        if name == self.source.event_time:
            return time_ms(value, name)
        if kind == MAP:
            return entries(value, name)
        if kind in INTEGERS:
            return whole(value, name)
        if kind == "double":
            return real(value, name)
        return _truth(value, name) if kind == "boolean" else identifier(value, name)


def _truth(value: Any, field: str) -> bool | None:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value is None or isinstance(value, bool):
        return value
    raise BadRecord(MALFORMED, f"{field} is {str(value)[:40]!r}, neither true nor false")
