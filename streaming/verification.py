"""The archive held against itself and against Kafka: every offset once, or named.

An offset below the manifest's next is archived, or it is told why it is not. For those that are not, Kafka is asked and
the record judged again by the rules that the writer applies:

    refused     a record that the rules refuse; it went to the dead letter
    forgotten   a record of an entity that was forgotten since
    no_record   an offset that no record has, such as a transaction's end
    expired     older than what Kafka keeps: nobody can tell any more
    gaps        a record that should be in the archive: it is lost there

Memory: eight bytes an archived record of a topic, and the ids of what was imported.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from numpy.typing import NDArray

from headwater.archive_files import live_files, rows_by_date
from headwater.errors import UnavailableError
from headwater.events import TOO_LATE, BadRecord
from headwater.forgotten import read_tombstones
from headwater.kafka_io import describe, offset_bounds, partitions_of
from headwater.records import PLACE
from headwater.settings import Settings, addresses
from streaming.archive_writer import POLL_S, Archived, Channel, archive_consumer, channels, plan_of
from streaming.erasure import Eraser
from streaming.parquet_log import read_manifest

Span = tuple[int, int]
"""First and last offset."""
_NEAR = 1_000
"""Missing offsets that lie nearer are read in one go."""
_PATIENCE_S = 30.0
EXAMPLES = 10
REFUSED, FORGOTTEN = "refused", "forgotten"


@dataclass(slots=True)
class PartitionReport:
    """One partition; ``first`` and ``last`` are archived offsets, ``kafka_end`` the next that will be written."""

    partition: int
    rows: int
    first: int | None
    last: int | None
    next_offset: int
    kafka_first: int
    kafka_end: int
    gaps: list[Span] = field(default_factory=list)
    doubles: list[int] = field(default_factory=list)
    refused: int = 0
    forgotten: int = 0
    no_record: int = 0
    expired: int = 0

    @property
    def is_exact(self) -> bool:
        return not self.gaps and not self.doubles and self.next_offset <= self.kafka_end


@dataclass(slots=True)
class Seam:
    """What was imported and is on the topic too: ``differing`` copies tell of something else than the import's."""

    imported: int = 0
    on_both_sides: int = 0
    differing: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class TopicReport:
    """One topic; ``rows_by_date`` counts imported rows too."""

    topic: str
    partitions: list[PartitionReport]
    rows_by_date: dict[str, int]
    seam: Seam

    @property
    def is_exact(self) -> bool:
        return all(part.is_exact for part in self.partitions) and not self.seam.differing


def verify(settings: Settings) -> list[TopicReport]:
    """Verify all that is archived, beside a running writer.

    Raises
    ------
    UnavailableError
        Kafka does not answer.
    """
    address = addresses(settings).kafka
    plan, tombstones = plan_of(settings), read_tombstones(settings.archive_dir)
    cluster, consumer = describe(address), archive_consumer(address)
    try:
        return [
            _topic(consumer, partitions_of(cluster, channel.topic), channel, Eraser(channel.topic, plan, tombstones))
            for channel in channels(settings)
            if channel.topic in cluster.partitions or live_files(channel.folder)
        ]
    finally:
        consumer.close()


def _topic(consumer: Consumer, partitions: Iterable[int], channel: Channel, eraser: Eraser) -> TopicReport:
    bounds = offset_bounds(consumer, channel.topic, partitions)
    manifest = read_manifest(channel.folder)
    next_offsets = manifest.next_offsets if manifest else {}
    files = live_files(channel.folder)
    held = _offsets(files)
    reports = []
    for number in sorted({*bounds, *(part for part in held if part >= 0)}):
        first, end = bounds.get(number, (0, 0))
        below = next_offsets.get(number, 0)
        offsets = held.get(number, np.empty(0, np.int64))
        report = _compared(number, offsets[offsets < below], below, first, end)
        reports.append(report)
        _explain(consumer, channel, eraser, report)
    return TopicReport(channel.topic, reports, rows_by_date(channel.folder), _seam(files, channel))


def _seam(files: Sequence[Path], channel: Channel) -> Seam:
    """Compare what was imported with what came over the topic under the same id."""
    if channel.event_id is None or not files:
        return Seam()
    archive = ds.dataset(files, schema=channel.schema, format="parquet")
    name, is_import = channel.event_id, pc.field("partition") < 0
    imported = archive.to_table(columns=[name], filter=is_import)[name]
    if not len(imported):
        return Seam()
    sent = archive.to_table(filter=~is_import & pc.field(name).isin(pc.unique(imported)))
    both = pc.unique(sent[name])
    ours = _first_by_id(archive.to_table(filter=is_import & pc.field(name).isin(both)), name)
    theirs = _first_by_id(sent, name)
    differing = sorted(one for one in ours if ours[one] != theirs[one])
    return Seam(len(imported), len(both), len(differing), [str(one) for one in differing[:EXAMPLES]])


def _first_by_id(table: pa.Table, name: str) -> dict[Any, dict[str, Any]]:
    """Of each id the copy that counts, without its place."""
    ordered = table.sort_by([(column, "descending") for column in ("ingest_time", "partition", "offset")])
    return {row[name]: row for row in ordered.drop_columns(list(PLACE)).to_pylist()}


def _offsets(files: Iterable[Path]) -> dict[int, NDArray[np.int64]]:
    """Sorted archived offsets by partition."""
    parts: dict[int, list[NDArray[np.int64]]] = {}
    for path in files:
        table = pq.ParquetFile(path).read(columns=["partition", "offset"])
        partition, offset = table["partition"].to_numpy(), table["offset"].to_numpy()
        for number in np.unique(partition).tolist():
            parts.setdefault(number, []).append(offset[partition == number].astype(np.int64))
    return {number: np.sort(np.concatenate(held)) for number, held in parts.items()}


def _compared(number: int, offsets: NDArray[np.int64], below: int, first: int, end: int) -> PartitionReport:
    """What the archive alone tells: any offset that it lacks is a gap so far."""
    distinct, counts = np.unique(offsets, return_counts=True)
    edges = np.r_[-1, distinct, below]
    holes = np.flatnonzero(np.diff(edges) > 1)
    gaps = [(int(edges[at]) + 1, int(edges[at + 1]) - 1) for at in holes]
    oldest, newest = (int(distinct[0]), int(distinct[-1])) if len(distinct) else (None, None)
    doubles = distinct[counts > 1].tolist()
    return PartitionReport(number, len(offsets), oldest, newest, below, first, end, gaps, doubles)


def _explain(consumer: Consumer, channel: Channel, eraser: Eraser, report: PartitionReport) -> None:
    """Ask Kafka for what is missing, and leave among the gaps what should be there."""
    missing, first_kept = report.gaps, report.kafka_first
    kept = [(max(first, first_kept), last) for first, last in missing if last >= first_kept]
    wanted = {offset for first, last in kept for offset in range(first, last + 1)}
    records = (one for span in _joined(kept) for one in _read(consumer, channel.topic, report.partition, *span))
    why = {one.offset(): _why(channel, eraser, one) for one in records if one.offset() in wanted}
    counts = Counter(why.values())
    report.expired, report.no_record = _count(missing) - len(wanted), len(wanted) - len(why)
    report.refused, report.forgotten = counts[REFUSED], counts[FORGOTTEN]
    report.gaps = _spans(offset for offset, reason in why.items() if reason is None)


def _why(channel: Channel, eraser: Eraser, message: Message) -> str | None:
    """Why a record need not be archived; ``None`` where it should be."""
    ingest_ms = message.timestamp()[1]
    try:
        held: Any = channel.read(message.value(), message.key(), ingest_ms)
    except BadRecord as bad:
        if bad.reason != TOO_LATE:
            return REFUSED
        held = bad.event
    table = channel.to_table(message.partition(), [Archived(held, ingest_ms, message.offset())])
    return FORGOTTEN if eraser.doomed(table).any() else None


def _read(consumer: Consumer, topic: str, partition: int, first: int, last: int) -> Iterator[Message]:
    """Records from an offset to another; the end of the partition ends it too."""
    consumer.assign([TopicPartition(topic, partition, first)])
    heard = time.monotonic()
    while time.monotonic() - heard < _PATIENCE_S:
        for message in consumer.consume(1000, timeout=POLL_S):
            heard = time.monotonic()
            if message.error() is not None:
                if message.error().code() == KafkaError._PARTITION_EOF:
                    return
                continue
            if message.offset() <= last:
                yield message
            if message.offset() >= last:
                return
    raise UnavailableError(f"kafka: partition {partition} of {topic} sends nothing. Run `headwater status`.")


def _joined(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for first, last in spans:
        if joined and first - joined[-1][1] <= _NEAR:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def _spans(offsets: Iterable[int]) -> list[Span]:
    spans: list[Span] = []
    for offset in sorted(offsets):
        if spans and offset == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], offset)
        else:
            spans.append((offset, offset))
    return spans


def _count(spans: Iterable[Span]) -> int:
    return sum(last - first + 1 for first, last in spans)
