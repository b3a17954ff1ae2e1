"""The recent past and the catalogue through Kafka, moving the platform's clock along."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from headwater import topics
from headwater.datasets.catalogue import YEAR_START
from headwater.datasets.complete_journey import epoch_ms, home_of
from headwater.datasets.pump import Checkpoint, file_identity, pump
from headwater.errors import DataError
from headwater.events import EVENT_SCHEMA, Event
from headwater.kafka_io import Record, Sender, describe
from headwater.settings import Settings, addresses

CATALOGUES = {topics.ITEMS: ("items.parquet", "item_id"), topics.USERS: ("users.parquet", "user_id")}
Report = Callable[[int, int], None]


class MovableClock(Protocol):
    """A clock for the past: ``StoredClock`` is one."""

    def set(self, now_ms: int, speed: float = 1.0) -> None:
        """Move the platform's time."""
        ...


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """What a replay sent; ``resumed_from`` rows had been acknowledged before."""

    events: int
    resumed_from: int
    first_ms: int
    last_ms: int
    seconds: float


def replay(
    settings: Settings, parquet: Path, clock: MovableClock, report: Report | None = None, restart: bool = False
) -> ReplaySummary:
    """Send archived events (``ARCHIVE_SCHEMA``, in order) to ``events`` as fast as the broker takes them.

    Each keeps its ingest time as the record's timestamp. The clock stands at the newest event acknowledged while the
    replay runs, and goes on, at speed 1, from 1 ms after the last.
    """
    began, file = time.monotonic(), _open(parquet)
    address = addresses(settings).kafka
    checkpoint = Checkpoint.of(settings.state_dir, "replay", file_identity(parquet), describe(address).id)
    if restart:
        checkpoint.clear()
    start, total = checkpoint.rows(), file.metadata.num_rows
    first_ms, last_ms = _bounds(file)

    def moved(rows: int, last: Record) -> None:
        clock.set(last.timestamp_ms, speed=0.0)
        if report:
            report(rows, total)

    if start < total:
        clock.set(first_ms, speed=0.0)
    pump(_event_records(file, start), Sender(address), checkpoint, start, moved)
    clock.set(last_ms + 1, speed=1.0)
    return ReplaySummary(total - start, start, first_ms, last_ms, round(time.monotonic() - began, 3))


def publish_catalogue(settings: Settings, restart: bool = False) -> dict[str, int]:
    """Send products and households, as JSON by id, to their compacted topics; what a broker has is not sent again.

    Returns
    -------
    Rows of each topic.
    """
    address = addresses(settings).kafka
    cluster, sender, sent = describe(address).id, Sender(address), {}
    for topic, (name, id_column) in CATALOGUES.items():
        path = home_of(settings) / name
        file = _open(path)
        checkpoint = Checkpoint.of(settings.state_dir, topic, file_identity(path), cluster)
        if restart:
            checkpoint.clear()
        start = checkpoint.rows()
        sent[topic] = pump(_catalogue_records(file, topic, id_column, start), sender, checkpoint, start)
    return sent


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Run `headwater data complete-journey` first.")
    return pq.ParquetFile(path)


def _bounds(file: pq.ParquetFile) -> tuple[int, int]:
    times = file.read(columns=["ingest_time"])["ingest_time"].to_numpy()
    if not len(times):
        raise DataError("replay: the file holds no event. Prepare the data set with more replay days.")
    return int(times.min()), int(times.max())


def _event_records(file: pq.ParquetFile, start: int) -> Iterator[Record]:
    for row in _rows(file, [*EVENT_SCHEMA.names, "ingest_time"], start):
        ingest_ms = row.pop("ingest_time")
        event = Event(**row | {"context": dict(row["context"])})
        yield Record(topics.EVENTS, event.user_id.encode(), event.to_json(), ingest_ms)


def _catalogue_records(file: pq.ParquetFile, topic: str, id_column: str, start: int) -> Iterator[Record]:
    known_ms = epoch_ms(YEAR_START)
    for row in _rows(file, file.schema_arrow.names, start):
        given = {name: value for name, value in row.items() if value is not None}
        yield Record(topic, row[id_column].encode(), json.dumps(given, ensure_ascii=False).encode(), known_ms)


def _rows(file: pq.ParquetFile, columns: list[str], start: int) -> Iterator[dict[str, Any]]:
    skip = start
    for batch in file.iter_batches(batch_size=5_000, columns=columns):
        yield from pa.Table.from_batches([batch]).slice(min(skip, len(batch))).to_pylist()
        skip = max(0, skip - len(batch))
