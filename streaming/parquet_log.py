"""A topic as Parquet files: every offset in exactly one of them, whatever moment the writer is killed at.

A flush writes, for each partition and date, one file named after the offsets that the flush covers,

    date=2017-10-30/p0000-00000000000000012000-00000000000000015999.parquet

first under a hidden name, then renamed, and only when all lie there is the manifest replaced, in one rename, by one
whose next offsets follow that range. The manifest alone says where reading goes on; the consumer group's offsets are
not used. So at a restart there are two cases. Killed before the rename of the manifest, its files cover offsets that
the manifest does not: `recover` deletes them, tells them by their names, and the same records are read again. Killed
after it, all of its files are in place, and reading goes on behind them. No third case exists, since one rename is
atomic; files and folders are synchronised before it, so the same holds when the machine loses power.

Readers may see files of a flush that is not yet committed. They are whole and each offset is in one of them only, but
a reader that must agree with other parts filters on ``offset < manifest's next offset`` (`read_manifest`).

Files are written, removed and replaced under one lock (`files_held`), so that `streaming.erasure` can take rows out of
them, and `streaming.compaction` bring them together, beside a running writer.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from headwater.archive_files import Span, span_of
from headwater.errors import DataError, ResourceError

MANIFEST = "_manifest.json"
FILES_LOCK = "_files.lock"
Row = TypeVar("Row")
Kept = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is committed: the next offset of each partition, and totals since the log began."""

    topic: str
    cluster: str
    next_offsets: dict[int, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        named = {"topic": self.topic, "cluster": self.cluster, "next_offsets": self.next_offsets, "totals": self.totals}
        return json.dumps(named)


def read_manifest(folder: Path) -> Manifest | None:
    """Read a log's committed state; None where nothing has been committed."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    read = json.loads(path.read_text())
    return Manifest(
        read["topic"], read["cluster"], {int(name): end for name, end in read["next_offsets"].items()}, read["totals"]
    )


class ParquetLog(Generic[Row]):
    """Rows of one topic, buffered until `flush` commits them.

    Parameters
    ----------
    to_table
        Lays the rows of one partition out as a table.
    """

    def __init__(self, folder: Path, topic: str, cluster: str, to_table: Callable[[int, list[Row]], pa.Table]) -> None:
        self._folder = folder
        self._to_table = to_table
        self._committed = self._recover(read_manifest(folder) or Manifest(topic, cluster), cluster)
        self._next = dict(self._committed.next_offsets)
        self._rows: dict[tuple[int, str], list[Row]] = {}
        self._counted: Counter[str] = Counter()
        self.buffered = 0

    @property
    def committed(self) -> Manifest:
        return self._committed

    def next_offset(self, partition: int) -> int:
        """Offset at which reading goes on, what is buffered included."""
        return self._next.get(partition, 0)

    def add(self, partition: int, offset: int, date: str, row: Row) -> None:
        """Buffer the row of one record."""
        self._rows.setdefault((partition, date), []).append(row)
        self._counted["rows"] += 1
        self.buffered += 1
        self.pass_by(partition, offset + 1)

    def pass_by(self, partition: int, next_offset: int) -> None:
        """Take note that all records before this offset are dealt with."""
        self._next[partition] = max(next_offset, self.next_offset(partition))

    def count(self, what: str) -> None:
        """Add one to a total, committed with the next flush."""
        self._counted[what] += 1

    def flush(self, kept: Kept = lambda table: table) -> None:
        """Commit all that was added; nothing happens where nothing was.

        Parameters
        ----------
        kept
            What is archived of a table of rows; the offsets of the others count as dealt with all the same.

        Raises
        ------
        ResourceError
            The disk does not take it; what was committed before stays so.
        """
        if self._next == self._committed.next_offsets:
            return
        whole = {place: self._to_table(place[0], rows) for place, rows in self._rows.items()}
        tables = {place: kept(table) for place, table in whole.items()}
        totals = Counter(self._committed.totals) + self._counted
        totals["forgotten"] += sum(table.num_rows - tables[place].num_rows for place, table in whole.items())
        manifest = Manifest(self._committed.topic, self._committed.cluster, dict(self._next), dict(+totals))
        try:
            for (partition, date), table in tables.items():
                if table.num_rows:
                    self._write(partition, date, table)
            replace_file(self._folder / MANIFEST, lambda draft: draft.write_text(manifest.to_json()))
        except OSError as error:
            raise ResourceError(
                f"{self._folder}: not written, {error.strerror or error}. Free some disk and start again."
            ) from error
        self._committed = manifest
        self._rows.clear()
        self._counted.clear()
        self.buffered = 0

    def _write(self, partition: int, date: str, table: pa.Table) -> None:
        first, last = self._committed.next_offsets.get(partition, 0), self._next[partition] - 1
        folder = self._folder / f"date={date}"
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / Span(partition, first, last).name, lambda draft: pq.write_table(table, draft))

    def _recover(self, manifest: Manifest, cluster: str) -> Manifest:
        """Remove what a killed flush left behind."""
        if manifest.cluster != cluster:
            raise DataError(
                f"{self._folder}: holds offsets of Kafka cluster {manifest.cluster}, this one is {cluster}, so they "
                "would not continue. Move that folder away, or point HEADWATER_KAFKA at its cluster."
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        for draft in self._folder.glob("date=*/.*.tmp"):
            draft.unlink()
        for file in self._folder.glob("date=*/p*.parquet"):
            span = span_of(file)
            if span and span.first >= manifest.next_offsets.get(span.partition, 0):
                file.unlink()
        return manifest


@contextmanager
def files_held(archive: Path) -> Iterator[None]:
    """Hold an archive's files, which nobody else writes, removes or replaces meanwhile."""
    archive.mkdir(parents=True, exist_ok=True)
    handle = os.open(archive / FILES_LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all, and on the disk before returning."""
    draft = path.with_name(f".{path.name}.tmp")
    write(draft)
    _synchronise(draft)
    draft.replace(path)
    _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
