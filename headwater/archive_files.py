"""The files of an archived topic: which of them count, and which columns they hold.

The archive writer names a file after its partition and the offsets that it deals with, under the date of its rows,

    date=2017-10-30/p0000-00000000000000012000-00000000000000015999.parquet

Compaction (:mod:`streaming.compaction`) puts beside several such files one that holds all of their rows, named after
all of their offsets, and removes them hours later. So a file whose offsets lie within those of another of its date and
partition does not count. Whoever reads an archive asks for :func:`live_files` once and reads those: whether the listing
met the new file or not, it names each row once. What is named otherwise, such as an import, always counts.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from headwater.errors import DataError

_NAME = re.compile(r"p(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)\.parquet")


class Span(NamedTuple):
    """Offsets that a file deals with, both ends included; not each of them need have a row."""

    partition: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"p{self.partition:04d}-{self.first:020d}-{self.last:020d}.parquet"


def span_of(path: Path) -> Span | None:
    """What a file's name says; ``None`` where the archive writer has not named it."""
    found = _NAME.fullmatch(path.name)
    return Span(*map(int, found.groups())) if found else None


def superseded(paths: Iterable[Path]) -> dict[Path, Path]:
    """Files that do not count, each with the one that first took its place."""
    by_place: defaultdict[tuple[Path, int], list[tuple[Span, Path]]] = defaultdict(list)
    for path in paths:
        if span := span_of(path):
            by_place[path.parent, span.partition].append((span, path))
    gone: dict[Path, Path] = {}
    for held in by_place.values():
        around: list[tuple[Span, Path]] = []  # spans lie apart or within each other, the innermost last
        for span, path in sorted(held, key=lambda one: (one[0].first, -one[0].last)):
            while around and around[-1][0].last < span.last:
                around.pop()
            if around:
                gone[path] = around[-1][1]
            around.append((span, path))
    return gone


def live_files(folder: Path, since: str | None = None, until: str | None = None) -> list[Path]:
    """Files that count, in order, of the dates from ``since`` to ``until``, both included."""
    listed = [
        path
        for date in sorted(folder.glob("date=*"))
        if (since is None or date_of(date) >= since) and (until is None or date_of(date) <= until)
        for path in date.glob("*.parquet")
    ]
    gone = superseded(listed)
    return sorted(path for path in listed if path not in gone)


def date_of(folder: Path) -> str:
    """The date of a folder ``date=2017-10-30``."""
    return folder.name.partition("=")[2]


def date_at(instant_ms: int) -> str:
    """The date, in UTC, of an instant in epoch milliseconds."""
    return datetime.fromtimestamp(instant_ms / 1000, UTC).date().isoformat()


def rows_by_date(folder: Path) -> dict[str, int]:
    """How many rows count of each date."""
    rows: defaultdict[str, int] = defaultdict(int)
    for path in live_files(folder):
        rows[date_of(path.parent)] += pq.read_metadata(path).num_rows
    return dict(rows)


def check_columns(folder: Path, schema: pa.Schema) -> None:
    """Refuse columns that do not go on from the archived ones: columns are added, never removed or retyped.

    Raises
    ------
    DataError
        Names the column.
    """
    for field in _archived(folder):
        place = schema.get_field_index(field.name)
        if place < 0:
            raise DataError(
                f"{folder.name}: column {field.name} is archived and not declared any more, so new files would be "
                f"without it. Declare it again, it may stay unused, or move {folder} away."
            )
        if (declared := schema.field(place).type) != field.type:
            raise DataError(
                f"{folder.name}: column {field.name} is archived as {field.type} and declared as {declared}, so old "
                f"files could not be read. Give the new column a name of its own, or move {folder} away."
            )


def _archived(folder: Path) -> list[pa.Field]:
    """Columns of the archive: those of each partition's newest file, since none is ever removed."""
    newest: dict[int, tuple[int, Path]] = {}
    for path in folder.glob("date=*/*.parquet"):
        if span := span_of(path):
            newest[span.partition] = max(newest.get(span.partition, (-1, path)), (span.last, path))
    fields = {field.name: field for _, path in newest.values() for field in pq.read_schema(path)}
    return list(fields.values())
