"""Forgotten entities out of Parquet files: of what is about to be archived, and of what lies there.

A file is replaced by one without their rows, of the same name, in one rename; so at any moment each file is the old one
or the new one, and a run that was killed is finished by the next. A file that is left without rows stays, empty: its
name says which offsets were dealt with.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headwater import topics
from headwater.archive_files import live_files, superseded
from headwater.forgotten import KeyColumn, Tombstone, key_columns
from headwater.plan import FeaturePlan
from headwater.records import ENVELOPE
from streaming.parquet_log import Kept, files_held, replace_file

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """``rows`` that were taken out of ``files``."""

    rows: int = 0
    files: int = 0

    def __add__(self, other: "Rewritten") -> "Rewritten":
        return Rewritten(self.rows + other.rows, self.files + other.files)


@dataclass(frozen=True)
class Eraser:
    """Knows the rows of a topic's records that are forgotten."""

    topic: str
    plan: FeaturePlan | None
    tombstones: Sequence[Tombstone]

    def kept(self, table: pa.Table) -> pa.Table:
        """The table without them."""
        doomed = self.doomed(table)
        return table.filter(pa.array(~doomed)) if doomed.any() else table

    def doomed(self, table: pa.Table) -> Mask:
        """Whether each row is a forgotten entity's, from before it was forgotten; bool (n,)."""
        found = [self._of(table, tombstone) for tombstone in self.tombstones]
        return reduce(np.logical_or, found, np.zeros(table.num_rows, np.bool_))

    def _of(self, table: pa.Table, tombstone: Tombstone) -> Mask:
        own = [is_value(table, place, tombstone.value) for place in self._places(tombstone.join_key)]
        mask = reduce(np.logical_or, own, np.zeros(table.num_rows, np.bool_))
        for row in np.flatnonzero(mask):
            place = table["partition"][row].as_py(), table["offset"][row].as_py()
            mask[row] = tombstone.covers(self.topic, *place)
        return mask

    def _places(self, join_key: str) -> Iterable[KeyColumn]:
        if self.topic == topics.IMPRESSIONS:
            return (KeyColumn("value", join_key),)
        source = None if self.plan is None else self.plan.source_of_topic(self.topic)
        if self.plan is None or source is None:
            return (KeyColumn(join_key),) if join_key in ENVELOPE else ()
        return key_columns(self.plan, source, join_key)


def is_value(table: pa.Table, place: KeyColumn, value: str) -> Mask:
    """Whether a column, an entry of a map or a member of a JSON text is the value in each row; bool (n,)."""
    if place.column not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    column = table[place.column]
    if place.entry is None:
        return _filled(pc.equal(pc.cast(column, pa.string()), value))
    if pa.types.is_map(column.type):
        return _filled(pc.equal(pc.map_lookup(column, place.entry, "first"), value))
    return _is_member(column, place.entry, value)


def erase(archive: Path, folder: Path, kept: Kept) -> Rewritten:
    """Take rows out of every file of a topic's folder, beside a running archive writer.

    What is written from now on must not hold such rows: the tombstone has to be in the archive already.
    """
    with files_held(archive):  # a flush that began before the tombstone lay there has ended now
        for draft in folder.glob("date=*/.*.tmp"):
            draft.unlink()
    done, seen = Rewritten(), set[Path]()
    while unseen := sorted(set(folder.glob("date=*/*.parquet")) - seen):  # compaction may go on meanwhile
        gone = superseded(seen.union(unseen))
        for path in unseen:
            with files_held(archive):
                if path.exists():  # a starting writer removes what a killed one has left
                    taken = rewrite(path, kept)
                    done += replace(taken, rows=0) if path in gone else taken
        seen.update(unseen)
    return done


def rewrite(path: Path, kept: Kept) -> Rewritten:
    """Replace a file by what is kept of it, unless that is all."""
    whole = pq.ParquetFile(path).read()
    left = kept(whole)
    if left.num_rows == whole.num_rows:
        return Rewritten()
    replace_file(path, lambda draft: pq.write_table(left, draft))
    return Rewritten(whole.num_rows - left.num_rows, 1)


def without(join_key: str, value: str) -> Kept:
    """Keep the rows of a table of any kind whose column of a join key's name is not the value."""

    def kept(table: pa.Table) -> pa.Table:
        mask = is_value(table, KeyColumn(join_key), value)
        return table.filter(pa.array(~mask)) if mask.any() else table

    return kept


def rows_with(path: Path, join_key: str, value: str) -> int:
    """How many rows of a Parquet file are an entity's."""
    file = pq.ParquetFile(path)
    if join_key not in file.schema_arrow.names:
        return 0
    return int(is_value(file.read(columns=[join_key]), KeyColumn(join_key), value).sum())


def mentions(folder: Path, join_key: str, value: str) -> int:
    """How many impressions name an entity anywhere, as their own or as what was shown."""
    told = {json.dumps({join_key: value}, separators=marks)[1:-1] for marks in ((",", ":"), (", ", ": "))}
    found = 0
    for path in live_files(folder):
        column = pq.read_table(path, columns=["value"], partitioning=None)["value"]
        found += int(reduce(np.logical_or, [_filled(pc.match_substring(column, one)) for one in told]).sum())
    return found


def _is_member(column: pa.ChunkedArray, name: str, value: str) -> Mask:
    """Only texts that hold the value somewhere are parsed."""
    needles = {json.dumps(value), json.dumps(value, ensure_ascii=False)}
    mask = reduce(np.logical_or, [_filled(pc.match_substring(column, needle)) for needle in needles])
    for row in np.flatnonzero(mask):
        mask[row] = _member(column[row].as_py(), name) == value
    return mask


def _member(text: str, name: str) -> Any:
    try:
        held = json.loads(text)
    except ValueError:
        return None
    return held.get(name) if isinstance(held, dict) else None


def _filled(mask: Any) -> Mask:
    filled: Mask = np.asarray(pc.fill_null(mask, False)).astype(np.bool_)
    return filled.copy()
