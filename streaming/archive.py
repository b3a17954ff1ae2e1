"""The archive writer: what Kafka holds, as Parquet, each record once (`streaming.parquet_log` says how).

    events                valid ──►  archive/events/date=<event time>/     refused ──►  topic events.dead_letter
    topics of the plan    valid ──►  archive/<topic>/date=<event time>/    refused ──►  topic events.dead_letter
    impressions                 ──►  archive/impressions/date=<arrival>/

Copies that share an ``event_id`` are all kept: which of them counts is decided where they are read. Dead letters are
sent before the offsets behind them are committed, so a kill in between sends some again; their key is
``topic-partition-offset``, by which a reader tells a copy.

Run as ``python -m streaming.archive``; it says it is ready in ``run/archive.ready`` and ends on SIGTERM.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from headwater import topics
from headwater.errors import HeadwaterError, UnavailableError
from headwater.kafka_io import describe, offset_bounds, partitions_of
from headwater.log import configure_logging, get_logger
from headwater.runtime.ready import mark_ready, ready_path
from headwater.settings import Settings, addresses, get_settings
from streaming.archive_writer import FLUSH_S, POLL_S, ArchiveWriter, WriterRunning, archive_consumer, channels
from streaming.parquet_log import read_manifest

log = get_logger("streaming")


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All that the topics held when it was asked for is archived.

    ``archived`` and ``dead_letters`` count records of all topics but impressions; ``partitions`` are next offsets of
    ``events``.
    """

    archived: int
    dead_letters: int
    partitions: dict[int, int]


def archived_offsets(settings: Settings, topic: str = topics.EVENTS) -> dict[int, int]:
    """Next offset of each partition of a topic: all before it are archived, none of the rest surely."""
    manifest = read_manifest(settings.archive_dir / topic)
    return manifest.next_offsets if manifest else {}


def catch_up(settings: Settings, timeout_s: float = 600) -> CaughtUp:
    """Archive all that the topics hold now.

    Where a writer is running already, wait for it to have done so.

    Raises
    ------
    UnavailableError
        The broker does not answer, or the running writer does not get there in time.
    """
    before, ends = _totals(settings), _ends(settings)
    try:
        with ArchiveWriter(settings) as writer:
            writer.run(until=lambda: writer.has_reached(ends))
    except WriterRunning:
        _await_writer(settings, ends, timeout_s)
    after = _totals(settings)
    return CaughtUp(
        archived=after["rows"] - before["rows"],
        dead_letters=after["dead_letters"] - before["dead_letters"],
        partitions=archived_offsets(settings),
    )


def main(flush_s: float = FLUSH_S, settings: Settings | None = None) -> int:
    """Run until SIGTERM or Ctrl-C; both end it in good order."""
    configure_logging()
    asked_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked_to_stop.append(received))
    try:
        settings = settings or get_settings()
        with ArchiveWriter(settings, flush_s=flush_s) as writer, _ready(settings, writer):
            log.info("archive_ready", next_offsets=writer.positions())
            writer.run(until=lambda: bool(asked_to_stop))
        log.info("archive_stopped", next_offsets=archived_offsets(settings))
    except HeadwaterError as error:
        log.error("archive_failed", reason=str(error))
        return 1
    return 0


@contextmanager
def _ready(settings: Settings, writer: ArchiveWriter) -> Iterator[None]:
    mark_ready(settings, "archive", next_offsets=writer.positions())
    try:
        yield
    finally:
        ready_path(settings, "archive").unlink(missing_ok=True)


def _ends(settings: Settings) -> dict[str, dict[int, int]]:
    address = addresses(settings).kafka
    cluster, consumer = describe(address), archive_consumer(address)
    try:
        return {
            topic: {
                number: end
                for number, (_, end) in offset_bounds(consumer, topic, partitions_of(cluster, topic)).items()
            }
            for topic in (channel.topic for channel in channels(settings))
        }
    finally:
        consumer.close()


def _await_writer(settings: Settings, ends: dict[str, dict[int, int]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while behind := _behind(settings, ends):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"archive: the running writer is at {archived_offsets(settings, behind)} of {behind} after "
                f"{timeout_s:.0f} s, asked for {ends[behind]}. Read its log with `headwater status`; a topic of "
                "definitions applied since it started is archived once it is started again."
            )
        time.sleep(POLL_S)


def _behind(settings: Settings, ends: dict[str, dict[int, int]]) -> str | None:
    """Name a topic that is not archived up to its end."""
    for topic, parts in ends.items():
        done = archived_offsets(settings, topic)
        if any(done.get(number, 0) < end for number, end in parts.items()):
            return topic
    return None


def _totals(settings: Settings) -> Counter[str]:
    """Totals of all topics but impressions."""
    totals: Counter[str] = Counter()
    for channel in channels(settings):
        if channel.topic != topics.IMPRESSIONS and (manifest := read_manifest(channel.folder)):
            totals.update(manifest.totals)
    return totals


if __name__ == "__main__":
    sys.exit(main())
