"""Reads the topics and feeds the Parquet logs; see `streaming.archive` for what it is part of."""

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, Message, TopicPartition

from headwater import topics
from headwater.archive_files import check_columns
from headwater.errors import DataError, HeadwaterError, ResourceError
from headwater.events import ARCHIVE_SCHEMA, MALFORMED, BadRecord, EventLimits, archive_table, parse_event
from headwater.forgotten import read_tombstones
from headwater.kafka_io import Cluster, Sender, client_config, dead_letter, describe, offset_bounds, partitions_of
from headwater.log import get_logger
from headwater.plan import DAY_MS, FeaturePlan, Source
from headwater.records import archive_schema, is_envelope, parse_record, records_table
from headwater.settings import Settings, addresses
from streaming.compaction import compact
from streaming.erasure import Eraser
from streaming.parquet_log import ParquetLog, files_held

POLL_S = 0.2
FLUSH_ROWS = 50_000
FLUSH_S = 5.0
BATCH = 1_000
"""Records taken at once; fewer mean that there is time to tidy up."""
TIDY_S, MANY_FILES = 600.0, 16
"""Once in so long, a topic's small files are compacted where so many of a date and partition lie together."""
DEAD_LETTERS, LATE = "dead_letters", "late"
"""Totals in the manifest; ``dead_letters:<reason>`` is kept for each reason as well."""
IMPRESSION_SCHEMA = pa.schema(
    [
        pa.field("value", pa.string(), nullable=False),
        pa.field("ingest_time", pa.int64(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)

log = get_logger("streaming")


class WriterRunning(ResourceError):
    """Another process writes this archive."""


class Timed(Protocol):
    """What a channel reads."""

    @property
    def event_time(self) -> int:
        """Epoch ms, by which it is dated."""

    @property
    def cut_ms(self) -> int:
        """By how much that was cut to the ingest time."""


@dataclass(frozen=True, slots=True)
class Impression:
    """One record of ``impressions``, its value unread, dated by its arrival."""

    value: str
    event_time: int
    cut_ms: int = 0


@dataclass(frozen=True, slots=True)
class Archived:
    """One record on its way into the archive."""

    held: Any
    ingest_ms: int
    offset: int


@dataclass(frozen=True, slots=True)
class Channel:
    """One topic: where it is archived, how a record is judged, how records are laid out.

    Attributes
    ----------
    read
        ``(value, key, ingest_ms)`` to what is kept, or :class:`BadRecord`.
    schema
        Columns of what ``to_table`` lays out.
    event_id
        The one that copies of a record share; None where each record is its own.
    """

    topic: str
    folder: Path
    schema: pa.Schema
    read: Callable[[bytes | None, bytes | None, int], Timed]
    to_table: Callable[[int, list[Archived]], pa.Table]
    event_id: str | None = None


def channels(settings: Settings) -> tuple[Channel, ...]:
    """All that is archived: the platform's events, the topics that the applied definitions read, impressions."""
    plan = plan_of(settings)
    sources = () if plan is None else plan.sources
    foreign = [_source_channel(settings, plan, source) for source in sources if source.topic != topics.EVENTS]
    folder = settings.impressions_dir
    impressions = Channel(topics.IMPRESSIONS, folder, IMPRESSION_SCHEMA, _read_impression, _impressions_table)
    return (_event_channel(settings, plan, topics.EVENTS), *foreign, impressions)


def plan_of(settings: Settings) -> FeaturePlan | None:
    """What is applied, if anything is."""
    return FeaturePlan.read(settings.manifest_path) if settings.manifest_path.exists() else None


def _event_channel(settings: Settings, plan: FeaturePlan | None, topic: str) -> Channel:
    limits = EventLimits.of(settings, _horizon_ms(plan, topic))
    return Channel(
        topic, settings.archive_dir / topic, ARCHIVE_SCHEMA,
        lambda value, key, ms: parse_event(value, key, ms, limits), _events_table, "event_id",
    )  # fmt: skip


def _source_channel(settings: Settings, plan: FeaturePlan | None, source: Source) -> Channel:
    if is_envelope(source):
        return _event_channel(settings, plan, source.topic)
    limits = EventLimits.of(settings, _horizon_ms(plan, source.topic))

    def to_table(partition: int, rows: list[Archived]) -> pa.Table:
        held, ingest_ms, offsets = _laid_out(rows)
        return records_table(source, held, ingest_ms, partition, offsets)

    return Channel(
        source.topic, settings.archive_dir / source.topic, archive_schema(source),
        lambda value, _, ms: parse_record(source, value, ms, limits), to_table, source.event_id,
    )  # fmt: skip


class ArchiveWriter:
    """Reads all channels from where their logs end; a context manager, since it holds the archive's lock.

    Parameters
    ----------
    flush_rows, flush_s
        A flush comes after so many rows, or so many seconds after the last.
    """

    def __init__(self, settings: Settings, flush_rows: int = FLUSH_ROWS, flush_s: float = FLUSH_S) -> None:
        self._settings = settings
        self._flush_rows, self._flush_s = flush_rows, flush_s
        self._plan = plan_of(settings)
        self._channels = {channel.topic: channel for channel in channels(settings)}
        self._flushed_at = time.monotonic()
        self._tidied_at = time.monotonic() - TIDY_S

    def __enter__(self) -> "ArchiveWriter":
        self._lock = _lock(self._settings)
        try:
            address = addresses(self._settings).kafka
            cluster = describe(address)
            for channel in self._channels.values():
                check_columns(channel.folder, channel.schema)
            with files_held(self._settings.archive_dir):
                self._logs = {
                    topic: ParquetLog(channel.folder, topic, cluster.id, channel.to_table)
                    for topic, channel in self._channels.items()
                }
            self._sender = Sender(address)
            self._consumer = archive_consumer(address)
            self._assign(cluster)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
        os.close(self._lock)

    def run(self, until: Callable[[], bool]) -> None:
        """Archive until told to stop; what was read by then is committed."""
        while not until():
            messages = self._consumer.consume(BATCH, timeout=POLL_S)
            for message in messages:
                self._take(message)
            if self._is_due():
                self.flush()
            if len(messages) < BATCH:
                self._tidy()
        self.flush()

    def flush(self) -> None:
        """Commit what was read: first the dead letters, then the rows with their offsets, without who is forgotten."""
        self._sender.settle()
        rows = sum(part.buffered for part in self._logs.values())
        with files_held(self._settings.archive_dir):
            tombstones = read_tombstones(self._settings.archive_dir)
            for topic, part in self._logs.items():
                part.flush(Eraser(topic, self._plan, tombstones).kept)
        self._flushed_at = time.monotonic()
        if rows:
            log.debug("archived", rows=rows, next_offsets=self.positions())

    def _tidy(self) -> None:
        """Compact one group of small files; the next follows at once, and when there is none, a while later."""
        if time.monotonic() - self._tidied_at < TIDY_S:
            return
        for channel in self._channels.values():
            try:
                done = compact(self._settings.archive_dir, channel.folder, at_least=MANY_FILES, at_most=1)
            except (HeadwaterError, pa.ArrowException) as error:  # archiving goes on, as long as there is room for that
                log.warning("archive_not_compacted", topic=channel.topic, reason=str(error))
                continue
            if done.merged or done.removed:
                log.info("archive_compacted", topic=channel.topic, **asdict(done))
            if done.merged:
                return
        self._tidied_at = time.monotonic()

    def has_reached(self, ends: dict[str, dict[int, int]]) -> bool:
        """Whether all before these next offsets has been read."""
        return all(
            self._logs[topic].next_offset(partition) >= end
            for topic, parts in ends.items()
            for partition, end in parts.items()
        )

    def positions(self) -> dict[str, dict[int, int]]:
        """Next offset of each topic's partitions, what is buffered included."""
        return {
            topic: {number: self._logs[topic].next_offset(number) for number in numbers}
            for topic, numbers in self._assigned.items()
        }

    def _assign(self, cluster: Cluster) -> None:
        self._assigned = {topic: partitions_of(cluster, topic) for topic in self._logs}
        where = []
        for topic, numbers in self._assigned.items():
            for number, (first, end) in offset_bounds(self._consumer, topic, numbers).items():
                ours = self._logs[topic].next_offset(number)
                if ours > end:
                    raise DataError(
                        f"{topic}: the archive holds partition {number} up to offset {ours}, Kafka ends at {end}, so "
                        "it is not the topic that was archived. Move the archive's folder away."
                    )
                if ours < first:
                    log.warning("records_lost", topic=topic, partition=number, archived=ours, oldest_in_kafka=first)
                where.append(TopicPartition(topic, number, max(ours, first)))
        self._consumer.assign(where)

    def _is_due(self) -> bool:
        rows = sum(part.buffered for part in self._logs.values())
        return rows >= self._flush_rows or time.monotonic() - self._flushed_at > self._flush_s

    def _take(self, message: Message) -> None:
        if message.error() is not None:
            self._trouble(message)
        else:
            self._take_record(message)

    def _take_record(self, message: Message) -> None:
        ingest_ms = message.timestamp()[1]
        held: Timed | None
        try:
            held = self._channels[message.topic()].read(message.value(), message.key(), ingest_ms)
        except BadRecord as bad:
            held = bad.event
            self._refuse(message, bad)
        if held is not None:
            part = self._logs[message.topic()]
            archived = Archived(held, ingest_ms, message.offset())
            part.add(message.partition(), message.offset(), _date(held.event_time), archived)
            if held.cut_ms:
                part.count("cut_to_ingest_time")
            if ingest_ms - held.event_time > self._settings.max_clock_skew_s * 1000:
                part.count(LATE)

    def _refuse(self, message: Message, bad: BadRecord) -> None:
        source = message.topic(), message.partition(), message.offset()
        self._sender.send(dead_letter(bad, message.value(), message.key(), *source, message.timestamp()[1]))
        part = self._logs[message.topic()]
        part.count(DEAD_LETTERS)
        part.count(f"{DEAD_LETTERS}:{bad.reason}")
        part.pass_by(message.partition(), message.offset() + 1)

    def _trouble(self, message: Message) -> None:
        error: KafkaError = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            if message.offset() != OFFSET_INVALID:  # offsets may end in a gap that no record fills
                self._logs[message.topic()].pass_by(message.partition(), message.offset())
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.UNKNOWN_TOPIC_OR_PART):
            raise DataError(f"{message.topic()}: cannot be read on, {error.str()}. Run `headwater status`.")
        else:  # the client tries again by itself
            log.warning("kafka", error=error.str())


def _lock(settings: Settings) -> int:
    settings.archive_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(settings.archive_dir / "_writer.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise WriterRunning(
            f"archive: {settings.archive_dir} is written by another process. Run `headwater down` to end it."
        ) from None
    return handle


def archive_consumer(address: str) -> Consumer:
    """Open a consumer that is told where to read and commits nothing."""
    return Consumer(
        client_config(address)
        | {
            "group.id": "headwater-archive",  # required by the client, never joined: partitions are assigned
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 16_384,
        }
    )


def _horizon_ms(plan: FeaturePlan | None, topic: str) -> int | None:
    """Lateness past which no view could read an event; unbounded while no definition reads the topic."""
    source = None if plan is None else plan.source_of_topic(topic)
    return None if plan is None or source is None else plan.horizon_ms(source.name)


def _date(epoch_ms: int) -> str:
    return str(np.datetime64(epoch_ms // DAY_MS, "D"))


def _laid_out(rows: list[Archived]) -> tuple[list[Any], list[int], list[int]]:
    return [row.held for row in rows], [row.ingest_ms for row in rows], [row.offset for row in rows]


def _events_table(partition: int, rows: list[Archived]) -> pa.Table:
    held, ingest_ms, offsets = _laid_out(rows)
    return archive_table(held, ingest_ms, partition, offsets)


def _read_impression(value: bytes | None, _: bytes | None, ingest_ms: int) -> Impression:
    try:
        return Impression((value or b"").decode(), ingest_ms)
    except UnicodeDecodeError as error:
        raise BadRecord(MALFORMED, str(error)) from None


def _impressions_table(partition: int, rows: list[Archived]) -> pa.Table:
    return pa.table(
        {
            "value": [row.held.value for row in rows],
            "ingest_time": [row.ingest_ms for row in rows],
            "partition": [partition] * len(rows),
            "offset": [row.offset for row in rows],
        },
        schema=IMPRESSION_SCHEMA,
    )
