"""From the bytes on a topic to the events that count, by the very functions that the archive judges them with.

A batch of records crosses into Python once, as Arrow. What comes back is typed: the columns that some view reads, the
event's id, time and hash; a refused record is a row of nulls. So there is one implementation of the rules of
:mod:`headwater.events` and :mod:`headwater.records`, for every format. Nothing here imports Flink.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any

from headwater.avro import MAP
from headwater.events import EVENT_SCHEMA, BadRecord, EventLimits, event_hash, parse_event
from headwater.forgotten import KeyColumn, Tombstone
from headwater.plan import Source
from headwater.records import ENVELOPE, is_envelope, parse_record

_TYPES = {
    "string": "STRING",
    "bigint": "BIGINT",
    "int": "INT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    MAP: "BOOLEAN",
}
MARKS = {"hw_id": "STRING", "hw_time": "BIGINT", "hw_hash": "BIGINT", "hw_ingest": "BIGINT"}
"""What is read of every record: its id as text, its event time, cut to the ingest time where the sender's clock is
ahead, 48 bits of the id's MD5, and the ingest time."""
PLACE = ("hw_partition", "hw_offset")
"""Where a record lies in its topic; carried along beside what is read of it."""
assert list(ENVELOPE) == EVENT_SCHEMA.names


def columns_of(source: Source) -> dict[str, str]:
    """Names and types that may be read of a source."""
    declared = dict(source.columns)
    return {**declared, **ENVELOPE} if is_envelope(source) else declared


def kafka_table(table: str, topic: str, bootstrap: str, group: str) -> str:
    """Declare a topic as a table of undecoded records.

    Metadata is NOT NULL: else Flink casts it in one place and not in another, finds two calls of the function that
    reads records unlike, and reads each record twice.
    """
    options = {
        "connector": "kafka", "topic": topic, "properties.bootstrap.servers": bootstrap,
        "properties.group.id": group, "scan.startup.mode": "earliest-offset", "key.format": "raw",
        "key.fields": "hw_key", "value.format": "raw", "value.fields-include": "EXCEPT_KEY",
    }  # fmt: skip
    listed = ", ".join(f"{text(key)} = {text(value)}" for key, value in options.items())
    return (
        f"CREATE TEMPORARY TABLE `{table}` (`hw_key` BYTES, `hw_value` BYTES, "
        "`hw_timestamp` TIMESTAMP_LTZ(3) NOT NULL METADATA FROM 'timestamp', "
        "`hw_partition` INT NOT NULL METADATA FROM 'partition', "
        f"`hw_offset` BIGINT NOT NULL METADATA FROM 'offset') WITH ({listed})"
    )


def judged(table: str, function: str) -> str:
    """Call the function that reads records, once a record; its row is the column ``hw_read``."""
    ingest = "EXTRACT(EPOCH FROM `hw_timestamp`) * 1000 + EXTRACT(MILLISECOND FROM `hw_timestamp`)"
    place = ", ".join(map(name, PLACE))
    return f"SELECT {function}(`hw_key`, `hw_value`, {ingest}, {place}) AS `hw_read`, {place} FROM `{table}`"


def counted(view: str, columns: Sequence[str]) -> str:
    """Keep the records that count, a column for each field of what was read."""
    fields = ", ".join(f"r.`hw_read`.{name(column)} AS {name(column)}" for column in columns)
    place = ", ".join(f"r.{name(column)}" for column in PLACE)
    return f"SELECT {fields}, {place} FROM `{view}` AS r WHERE r.`hw_read`.`hw_id` IS NOT NULL"


def entry(column: str, key: str) -> str:
    """Name the column of one entry of a map."""
    return f"{column}.{key}"


def name(column: str) -> str:
    """Quote an identifier."""
    return "`" + column.replace("`", "``") + "`"


def text(value: str) -> str:
    """Quote a literal."""
    return "'" + value.replace("'", "''") + "'"


@dataclass(frozen=True)
class RecordReader:
    """Judges and types the records of one source.

    Attributes
    ----------
    needed
        Columns to read, entries of maps as ``column.key``; of a map itself, whether there is one.
    forgotten
        Whose records do not count up to their tombstones' offsets, and where a record says that it is theirs.
    """

    source: Source
    needed: tuple[str, ...]
    limits: EventLimits
    forgotten: tuple[tuple[KeyColumn, Tombstone], ...] = ()

    @cached_property
    def types(self) -> dict[str, str]:
        """Flink's types of what is read, by name, in order."""
        kinds = columns_of(self.source)
        return MARKS | {column: _TYPES[kinds.get(column, "string")] for column in (*self._fields, *self._of_maps)}

    def read(
        self,
        keys: Iterable[bytes | None],
        values: Iterable[bytes | None],
        ingest_ms: Iterable[int],
        partitions: Iterable[int],
        offsets: Iterable[int],
    ) -> dict[str, tuple[Any, ...]]:
        """Read a batch, each (n,); a record that does not count is null in every column."""
        rows = [self._row(*record) for record in zip(keys, values, ingest_ms, partitions, offsets, strict=True)]
        return dict(zip(self.types, zip(*rows, strict=True), strict=True))

    def _row(
        self, key: bytes | None, raw: bytes | None, ingest_ms: int, partition: int, offset: int
    ) -> tuple[Any, ...]:
        try:
            found = self._parse(key, raw, ingest_ms)
        except BadRecord:
            return self._refused
        if self._tombstones and self._is_forgotten(found, partition, offset):
            return self._refused
        event_id, event_time, *fields = self._take(found)
        event_id = str(event_id)
        of_maps = [take(found) for take in self._of_maps.values()]
        return (event_id, event_time, event_hash(event_id), ingest_ms, *fields, *of_maps)

    def _parse(self, key: bytes | None, raw: bytes | None, ingest_ms: int) -> Any:
        """Return what has the columns: attributes of an event, values of a record."""
        if self._is_envelope:
            return parse_event(raw, key, ingest_ms, self.limits)
        return parse_record(self.source, raw, ingest_ms, self.limits).values

    def _is_forgotten(self, found: Any, partition: int, offset: int) -> bool:
        for take, of_value in self._tombstones:
            tombstone = of_value.get(_as_text(take(found)))
            if tombstone is not None and tombstone.covers(self.source.topic, partition, offset):
                return True
        return False

    @cached_property
    def _tombstones(self) -> list[tuple[Callable[[Any], Any], dict[str, Tombstone]]]:
        """By the place that says whose a record is: how it is read, and the tombstones by that value."""
        by_place: dict[KeyColumn, dict[str, Tombstone]] = {}
        for place, tombstone in self.forgotten:
            by_place.setdefault(place, {})[tombstone.value] = tombstone
        return [
            (take if place.entry is None else _entry_of(take, place.entry), of_value)
            for place, of_value in by_place.items()
            for take in (self._getter(place.column),)
        ]

    @cached_property
    def _is_envelope(self) -> bool:
        return is_envelope(self.source)

    @cached_property
    def _refused(self) -> tuple[None, ...]:
        return (None,) * len(self.types)

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        kinds = columns_of(self.source)
        return tuple(column for column in self.needed if kinds.get(column, MAP) != MAP)

    @cached_property
    def _of_maps(self) -> dict[str, Callable[[Any], Any]]:
        """How each entry of a map is taken, and of a whole map whether there is one."""
        of_maps = {}
        for read in self.needed:
            if read not in self._fields:
                column, _, key = read.partition(".")
                of_maps[read] = _entry_of(self._getter(column), key) if key else _is_there(self._getter(column))
        return of_maps

    @cached_property
    def _take(self) -> Callable[[Any], tuple[Any, ...]]:
        roles = (self.source.event_id, self.source.event_time)
        return self._getter(*roles, *self._fields)

    def _getter(self, *columns: str) -> Callable[[Any], Any]:
        return attrgetter(*columns) if self._is_envelope else itemgetter(*columns)


def _entry_of(take: Callable[[Any], Any], key: str) -> Callable[[Any], Any]:
    def entry(found: Any) -> Any:
        held = take(found)
        return None if held is None else held.get(key)

    return entry


def _as_text(value: Any) -> str:
    """A key as the engines spell it; what is null is nobody's, and no entity has an empty name."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_there(take: Callable[[Any], Any]) -> Callable[[Any], bool | None]:
    return lambda found: None if take(found) is None else True
