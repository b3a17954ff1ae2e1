"""Tiles of a history, in numpy: what the backfill writes under the stream's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch.md5 import first_48_bits
from headwater import folds
from headwater.folds import Ints
from headwater.online import codec
from headwater.plan import Partial, Table
from headwater.timeline import Column, Events, rank, starts


@dataclass(frozen=True, slots=True)
class Tiles:
    """Records of one table: ``group`` int64 (n,), the head's fields and partials (n,), and a list table's payloads."""

    group: Ints
    columns: dict[str, NDArray[Any]]
    payloads: list[bytes] | None

    def __len__(self) -> int:
        return len(self.group)


def event_hashes(event_id: pa.Array) -> NDArray[np.uint64]:
    """:func:`headwater.events.event_hash` of each id, uint64 (n,)."""
    return first_48_bits(event_id)


def fold_tiles(table: Table, events: Events, slot: int = codec.BASE) -> Tiles:
    """Fold sorted events into the tiles a reader can still reach: ``table.keep`` behind each group's newest.

    Parameters
    ----------
    events
        As :meth:`Events.sorted` leaves them.
    """
    hop = table.hop_ms
    tile = np.zeros(len(events), np.int64) if hop is None else events.event_time // hop
    if hop is not None and len(events):
        first = starts(events.group)
        newest = np.repeat(np.maximum.reduceat(tile, first), np.diff(np.r_[first, len(tile)]))
        kept = np.flatnonzero(tile >= newest - table.keep)
        events, tile = (events, tile) if len(kept) == len(events) else (events.take(kept), tile[kept])
    first = starts(events.group, tile)
    counts = np.diff(np.r_[first, len(tile)])
    columns: dict[str, NDArray[Any]] = {
        "tile": tile[first],
        "slot": np.full(len(first), slot),
        "count": counts,
        "newest": events.event_time[first + counts - 1],
        "ingest": _reduce(np.maximum, events.ingest_time, first),
        "hash": _reduce(np.add, event_hashes(events.event_id), first),
    }
    for partial in table.partials:
        columns |= _partial(partial, events.columns[partial.column or ""], first)
    payloads = None if table.kind == "fixed" else _payloads(table, events, first, counts)
    return Tiles(events.group[first], columns, payloads)


def emptied(table: Table, tiles: Tiles, beside: Tiles) -> Tiles:
    """Tiles of the same places that hold nothing, but for those ``beside``: what was written there is withdrawn."""
    kept = set(_places(beside)) if len(tiles) else set()
    rows = np.array([row for row, place in enumerate(_places(tiles)) if place not in kept], np.intp)
    neutral = {partial.name: codec.neutral(partial) for partial in table.partials}
    columns = {
        name: held[rows] if name in ("tile", "slot", "newest") else np.full(len(rows), neutral.get(name, 0), held.dtype)
        for name, held in tiles.columns.items()
    }
    return Tiles(tiles.group[rows], columns, None if tiles.payloads is None else [b""] * len(rows))


def _places(tiles: Tiles) -> list[tuple[int, int]]:
    return list(zip(tiles.group.tolist(), tiles.columns["tile"].tolist(), strict=True))


def _partial(partial: Partial, column: Column, first: Ints) -> dict[str, NDArray[Any]]:
    values = np.where(column.valid, column.values, codec.neutral(partial))
    if partial.kind == "count":
        return {partial.name: _reduce(np.add, column.valid.astype(np.int64), first)}
    if partial.kind == "sumsq":
        words = [folds.split_words(int(total)) for total in _reduce(np.add, values.astype(object) ** 2, first)]
        return {
            partial.name + "_hi": np.array([high for high, _ in words], np.int64),
            partial.name + "_lo": np.array([low for _, low in words], np.uint64),
        }
    fold = {"sum": np.add, "min": np.minimum, "max": np.maximum}[partial.kind]
    return {partial.name: _reduce(fold, values, first)}


def _payloads(table: Table, events: Events, first: Ints, counts: Ints) -> list[bytes]:
    column = events.columns[table.column or ""]
    owner = np.repeat(np.arange(len(first)), counts)
    rows = np.flatnonzero(column.valid)
    if table.kind == "last":
        rows = rows[rank(owner[rows][::-1])[::-1] < (table.n or 0)]
    texts = column.texts(rows)
    ends = np.cumsum(np.bincount(owner[rows], minlength=len(first))).tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if table.kind == "distinct":
        return [folds.sketch(set(texts[part])) for part in parts]
    ids = events.event_id.take(pa.array(rows)).to_pylist()
    entries = list(zip(events.event_time[rows].tolist(), ids, texts, strict=True))
    if table.kind == "last":
        return [codec.pack_entries(entries[part]) for part in parts]
    return [codec.pack_entries(folds.kept_entries(table, entries[part])) for part in parts]


def _reduce(fold: np.ufunc, values: NDArray[Any], first: Ints) -> NDArray[Any]:
    return fold.reduceat(values, first) if len(first) else values[:0]
