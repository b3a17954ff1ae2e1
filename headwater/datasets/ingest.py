"""A user's own events from a file into Kafka: resumable, and stopped by no malformed row."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from headwater import topics
from headwater.clock import Clock
from headwater.datasets.columns import INGEST_TIME, ColumnMap
from headwater.datasets.pump import Checkpoint, file_identity, pump
from headwater.datasets.rows import Row, RowFile
from headwater.datasets.source_columns import SourceMap
from headwater.errors import ConfigError
from headwater.events import MALFORMED, BadRecord, EventLimits, parse_event
from headwater.kafka_io import Record, Sender, dead_letter, describe, partitions_of
from headwater.plan import FeaturePlan
from headwater.records import is_envelope, parse_record, write_record
from headwater.settings import Settings, addresses

Report = Callable[[int, int], None]
NO_PARTITION = -1


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """Of this run: ``rows = produced + dead_letters``; ``resumed_from`` rows had been acknowledged before."""

    rows: int
    produced: int
    dead_letters: int
    resumed_from: int
    seconds: float


def ingest(
    settings: Settings,
    file: Path,
    columns: ColumnMap | SourceMap,
    clock: Clock,
    topic: str = topics.EVENTS,
    historic: bool = False,
    restart: bool = False,
    report: Report | None = None,
) -> IngestSummary:
    """Send every row of a JSON Lines, CSV or Parquet file as an event of its topic, keyed by the topic's key.

    A row without an event id gets one from the file's content and its number, so that sending it again adds
    nothing. What is refused goes to the dead letter, with its bytes.

    Parameters
    ----------
    historic
        The platform knew each event when it happened; otherwise it learns of it now, by the clock, or when the map's
        ``ingest_time`` column says.
    restart
        Send from the first row, whatever was acknowledged before.

    Raises
    ------
    DataError
        The file is missing, of unknown format, or without a column that is needed.
    ConfigError
        Two ingest times are asked for.
    UnavailableError
        The broker does not answer, or the topic does not exist.
    """
    began, rows = time.monotonic(), RowFile(file)
    if historic and INGEST_TIME in columns.columns:
        raise ConfigError("--historic and --ingest-time: both say when events became known. Give one.")
    present = rows.columns()
    if present is not None:
        columns.check(present, str(file))
    address = addresses(settings).kafka
    cluster = describe(address)
    partitions_of(cluster, topic)
    event_type = columns.event_type if isinstance(columns, ColumnMap) else columns.source.name
    asked = (dict(columns.columns), event_type, topic, historic, cluster.id)
    checkpoint = Checkpoint.of(settings.state_dir, "file", file_identity(file), *asked)
    if restart:
        checkpoint.clear()
    start = checkpoint.rows()
    digest, total = rows.digest_and_lines()
    reader = _Reader(columns, clock, topic, historic, str(file), digest, EventLimits.of(settings))
    end = pump(
        reader.records(rows.rows(), start), Sender(address), checkpoint, start,
        lambda done, _: report(done, max(total, done)) if report else None,
    )  # fmt: skip
    produced = end - start - reader.refused
    return IngestSummary(end - start, produced, reader.refused, start, round(time.monotonic() - began, 3))


def column_map(
    settings: Settings, topic: str, text: str | None, event_type: str = "purchase", ingest_time: str | None = None
) -> ColumnMap | SourceMap:
    """Read ``--map`` for a topic: of its own columns where the applied definitions declare them, else of the envelope.

    Raises
    ------
    ConfigError
        A part of the map names no column of the topic.
    """
    plan = FeaturePlan.read(settings.manifest_path) if settings.manifest_path.exists() else None
    source = None if plan is None else plan.source_of_topic(topic)
    if source is None or is_envelope(source):
        return ColumnMap.parse(text, event_type, ingest_time)
    return SourceMap.parse(source, text, ingest_time)


@dataclass
class _Reader:
    """Rows to records, counting those refused."""

    columns: ColumnMap | SourceMap
    clock: Clock
    topic: str
    historic: bool
    source: str
    digest: str
    limits: EventLimits
    refused: int = 0

    def records(self, rows: Iterator[Row], start: int) -> Iterator[Record]:
        for number, row in enumerate(islice(rows, start, None), start):
            try:
                yield self._event_record(row, number)
            except BadRecord as bad:
                self.refused += 1
                yield dead_letter(bad, row.raw(), None, self.source, NO_PARTITION, number, self.clock.now_ms())

    def _event_record(self, row: Row, number: int) -> Record:
        if row.fields is None:
            raise BadRecord(MALFORMED, "not a row of this format")
        made = self._source_record if isinstance(self.columns, SourceMap) else self._envelope
        try:
            return made(row.fields, f"{self.digest}-{number}")
        except ValueError as error:  # NaN, or text that is no Unicode
            raise BadRecord(MALFORMED, str(error)) from None

    def _envelope(self, fields: dict[str, Any], event_id: str) -> Record:
        assert isinstance(self.columns, ColumnMap)
        event = self.columns.event(fields, event_id)
        ingest_ms = self._ingest_ms(fields, event.event_time)
        value, key = event.to_json(), event.user_id.encode()
        parse_event(value, key, ingest_ms, self.limits)
        return Record(self.topic, key, value, ingest_ms)

    def _source_record(self, fields: dict[str, Any], event_id: str) -> Record:
        assert isinstance(self.columns, SourceMap)
        source = self.columns.source
        values = self.columns.values(fields, event_id)
        ingest_ms = self._ingest_ms(fields, values[source.event_time])
        value, key = write_record(source, values), values[source.key]
        parse_record(source, value, ingest_ms, self.limits)
        return Record(self.topic, str(key).encode(), value, ingest_ms)

    def _ingest_ms(self, fields: dict[str, object], event_ms: int) -> int:
        if self.historic:
            return event_ms
        if INGEST_TIME in self.columns.columns:
            return self.columns.time_ms(fields, INGEST_TIME)
        return self.clock.now_ms()
