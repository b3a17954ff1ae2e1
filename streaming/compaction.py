"""Many small files of a date become few, beside a running writer and running readers.

Of one partition and date, consecutive files are written into one that is named after all of their offsets, first under
a hidden name, then renamed. From that instant they do not count any more (:mod:`headwater.archive_files`), and each
row is still in exactly one file that does. They stay for hours, so that who has listed them before can read them to
the end; a later run removes them. A run that is killed leaves either a hidden draft, which the next removes, or the
finished file beside what it stands for, which is a state like any other.

Only files below the manifest's next offsets are touched: what a killed flush has left behind is the writer's to remove.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headwater.archive_files import Span, span_of, superseded
from headwater.errors import DataError, ResourceError
from streaming.parquet_log import files_held, read_manifest, replace_file

TARGET_BYTES = 64 << 20
"""Size that small files are brought together up to."""
_SHARE = 4
"""A file of one part in so many of the target is left as it is, or each run would write it again."""
KEEP_S = 6 * 3600.0
"""How long files that do not count any more stay for readers that have listed them: longer than any read takes."""
_ROWS = 500_000
"""Rows of a row group, and so what is held in memory at once, about."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """``merged`` small files became ``made``; ``removed`` are those merged earlier that nobody reads any more."""

    merged: int = 0
    made: int = 0
    removed: int = 0

    def __add__(self, other: "Compacted") -> "Compacted":
        return Compacted(self.merged + other.merged, self.made + other.made, self.removed + other.removed)


def compact(
    archive: Path,
    folder: Path,
    target_bytes: int = TARGET_BYTES,
    at_least: int = 2,
    at_most: int | None = None,
    now_s: Callable[[], float] = time.time,
) -> Compacted:
    """Compact a topic's folder of an archive.

    Parameters
    ----------
    at_least
        Fewer files together are left as they are.
    at_most
        Make no more files than this.
    now_s
        Wall time, as files carry it.

    Raises
    ------
    ResourceError
        The disk does not take it; all stays readable.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return Compacted()
    done = _remove_old(archive, folder, now_s())
    try:
        for date in sorted(folder.glob("date=*")):
            while at_most is None or done.made < at_most:
                with files_held(archive):
                    group = next(_groups(date, manifest.next_offsets, target_bytes, at_least), None)
                    if group is None:
                        break
                    _merge(group)
                done += Compacted(merged=len(group), made=1)
    except OSError as error:
        raise ResourceError(
            f"{folder}: not compacted, {error.strerror or error}. Free some disk and start again; all stays readable."
        ) from error
    return done


def _remove_old(archive: Path, folder: Path, now_s: float) -> Compacted:
    """Remove drafts of killed runs, and files that have not counted for long enough."""
    with files_held(archive):
        for draft in folder.glob("date=*/.*.tmp"):
            draft.unlink()
        gone = superseded(folder.glob("date=*/*.parquet"))
        old = [path for path, holder in gone.items() if now_s - holder.stat().st_mtime > KEEP_S]
        for path in old:
            path.unlink()
    return Compacted(removed=len(old))


def _groups(
    date: Path, next_offsets: dict[int, int], target_bytes: int, at_least: int
) -> Iterator[list[tuple[Span, Path]]]:
    """Consecutive files of a partition that together are of the target's size at most."""
    listed = list(date.glob("*.parquet"))
    gone = superseded(listed)
    by_partition: defaultdict[int, list[tuple[Span, Path]]] = defaultdict(list)
    for path in listed:
        span = span_of(path)
        if span and path not in gone and span.last < next_offsets.get(span.partition, 0):
            by_partition[span.partition].append((span, path))
    for _, held in sorted(by_partition.items()):
        yield from (group for group in _packed(sorted(held), target_bytes) if len(group) >= max(at_least, 2))


def _packed(held: Sequence[tuple[Span, Path]], target_bytes: int) -> Iterator[list[tuple[Span, Path]]]:
    group: list[tuple[Span, Path]] = []
    total = 0
    for span, path in held:
        size = path.stat().st_size
        large = size * _SHARE >= target_bytes
        if group and (large or total + size > target_bytes):
            yield group
            group, total = [], 0
        if not large:
            group.append((span, path))
            total += size
    if group:
        yield group


def _merge(group: Sequence[tuple[Span, Path]]) -> None:
    """Write a group's rows, in the order of their offsets, to one file; what an old file lacks is null there."""
    spans, paths = zip(*group, strict=True)
    schema = pa.unify_schemas([pq.read_schema(path) for path in reversed(paths)])
    expected = sum(pq.read_metadata(path).num_rows for path in paths)

    def write(draft: Path) -> None:
        with pq.ParquetWriter(draft, schema) as writer:
            for table in _gathered(paths, schema):
                writer.write_table(table)
        if (written := pq.read_metadata(draft).num_rows) != expected:
            raise DataError(
                f"{paths[0].parent}: {written} rows came of {expected}, so nothing was replaced. Run again."
            )

    replace_file(paths[0].with_name(Span(spans[0].partition, spans[0].first, spans[-1].last).name), write)


def _gathered(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of about ``_ROWS`` rows."""
    parts: list[pa.Table] = []
    rows = 0
    for path in paths:
        parts.append(pq.ParquetFile(path).read())
        rows += parts[-1].num_rows
        if rows >= _ROWS:
            yield _joined(parts, schema)
            parts, rows = [], 0
    if parts:
        yield _joined(parts, schema)


def _joined(parts: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([*parts, schema.empty_table()], promote_options="default").select(schema.names).cast(schema)
