"""Merge tiles into windows at one instant per entity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater import folds
from headwater.folds import Floats, Ints
from headwater.online import codec
from headwater.plan import Aggregate, Partial, Table

_EXTREMES = {"min": (np.minimum, codec.EMPTY_MIN), "max": (np.maximum, codec.EMPTY_MAX)}
_NEEDS = {
    "count": ("count",), "sum": ("sum",), "min": ("min",), "max": ("max",), "mean": ("count", "sum"),
    "stddev": ("count", "sum", "sumsq"),
}  # fmt: skip
"""Partials of its column that a function reads."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """A table's blobs of n entities end to end. ``starts, sizes`` (n,): where each lies, 0 bytes where none is."""

    each: Sequence[bytes | None]
    raw: bytes
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, blobs: Sequence[bytes | None]) -> "Blobs":
        held: Sequence[bytes] = [b"" if blob is None else blob for blob in blobs]
        sizes = np.fromiter(map(len, held), np.int64, len(held))
        return cls(blobs, b"".join(held), np.cumsum(sizes) - sizes, sizes)

    def at(self, dtype: Any, places: Ints) -> NDArray[Any]:
        """What begins at any places of the bytes."""
        last = max(0, len(self.raw) - np.dtype(dtype).itemsize + 1)
        anywhere: NDArray[Any] = np.ndarray(last, dtype, self.raw, 0, (1,))
        return anywhere[places]

    def newest(self) -> Ints:
        """Newest folded event of each, int64 (n,), -1 where there is no blob."""
        out = np.full(len(self.sizes), -1, np.int64)
        held = self.sizes > 0
        out[held] = self.at("<i8", self.starts[held] + 1)  # after the version
        return out


@dataclass(frozen=True, slots=True)
class Marks:
    """Which events were folded into a table's values, over all tiles that its longest window reads; each (n,).

    ``count``: how many. ``ingest``: the newest ingest time among them, -1 where there are none. ``hash``: their ids'
    hashes added up, wrapping at 64 bits.
    """

    count: Ints
    ingest: Ints
    hash: NDArray[np.uint64]


def merge_table(
    table: Table, aggregates: Sequence[Aggregate], blobs: Blobs, at: Ints, found: NDArray[np.bool_]
) -> tuple[Mapping[str, Floats | list[list[Any] | None]], Callable[[], Marks]]:
    """Values of a table's features, NaN or ``None`` where not found, and what tells the marks of what made them.

    Parameters
    ----------
    blobs, at, found : (n,)
        Per entity: its blob, the instant, whether an event lies in its ttl.
    """
    if table.kind == "fixed":
        return _fixed(table, aggregates, blobs, at, found)
    tiles = [_readable(table, blob, int(instant)) for blob, instant in zip(blobs.each, at, strict=True)]
    values = {aggregate.feature: _lists(table, aggregate, tiles, at, found) for aggregate in aggregates}
    return values, lambda: _marks_of_lists(tiles)


@dataclass(frozen=True, slots=True)
class _Records:
    """Records of n entities, newest first within each.

    ``values, owner, age`` (m,): heads and partials, whose they are, how many hops ago the tile began. ``starts``
    (n + 1,): where each entity's begin, and the end. ``order`` (m,): owner and age as one number, which ascends, of
    which each owner has ``span``.
    """

    values: NDArray[Any]
    owner: NDArray[np.intp]
    age: Ints
    starts: Ints
    youngest: int
    span: int
    order: Ints
    sums: dict[str, Ints]

    @classmethod
    def of(cls, table: Table, blobs: Blobs, at: Ints) -> "_Records":
        dtype, head = codec.record_dtype(table), codec.HEADER.size
        counts = np.maximum(blobs.sizes - head, 0) // dtype.itemsize
        starts = _running(counts)
        owner = np.repeat(np.arange(len(counts)), counts)
        first = blobs.starts + head - starts[:-1] * dtype.itemsize
        places = np.arange(len(owner)) * dtype.itemsize + np.repeat(first, counts)
        values = blobs.at(f"V{dtype.itemsize}", places).view(dtype)
        now = 0 if table.hop_ms is None else np.repeat(at // table.hop_ms, counts)
        age = now - values["tile"]
        youngest, oldest = (int(age.min()), int(age.max())) if len(age) else (0, 0)
        span = oldest - youngest + 1
        return cls(values, owner, age, starts, youngest, span, owner * span + (age - youngest), {})

    @property
    def n(self) -> int:
        return len(self.starts) - 1

    def ends(self, tiles: int) -> Ints:
        """Where each entity's records of at most so many hops end; as its newest they are its first."""
        last = np.arange(self.n) * self.span + min(max(tiles - self.youngest, -1), self.span - 1)
        return np.searchsorted(self.order, last, side="right")

    def total(self, name: str, ends: Ints) -> Ints:
        """Sum of a column from each entity's start to its end: a difference of sums, exact as integers wrap."""
        if name not in self.sums:
            self.sums[name] = _running(self.values[name])
        total: Ints = self.sums[name][ends] - self.sums[name][self.starts[:-1]]
        return total

    def extreme(self, kind: str, name: str, ends: Ints) -> Ints:
        """Least or greatest value of a column from each entity's start to its end."""
        fold, neutral = _EXTREMES[kind]
        return self.folded(fold, neutral, self.values[name], self.edges(ends))

    def edges(self, ends: Ints) -> tuple[NDArray[np.intp], Ints]:
        """Entities with a record before their end, and where the records of each begin and end, for ``reduceat``."""
        held = np.flatnonzero(ends > self.starts[:-1])
        edges = np.stack((self.starts[held], ends[held]), axis=1).ravel()
        return held, edges[:-1] if len(held) and edges[-1] == len(self.values) else edges

    def folded(self, fold: np.ufunc, neutral: int, values: NDArray[Any], edges: tuple[NDArray[np.intp], Ints]) -> Ints:
        """Fold a column between edges; copied out of the records, where it is not aligned, it folds much faster."""
        out = np.full(self.n, neutral, np.int64)
        if len(edges[0]):
            out[edges[0]] = fold.reduceat(np.ascontiguousarray(values), edges[1])[::2]
        return out


def _running(values: NDArray[Any]) -> Ints:
    """Sums of the first 0, 1, … m values, int64 (m + 1,)."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return sums


def _fixed(
    table: Table, aggregates: Sequence[Aggregate], blobs: Blobs, at: Ints, found: NDArray[np.bool_]
) -> tuple[dict[str, Floats], Callable[[], Marks]]:
    records = _Records.of(table, blobs, at)
    windows: dict[int | None, Ints] = {None: records.starts[1:]}
    out = {}
    for aggregate in aggregates:
        if aggregate.window_ms not in windows:
            windows[aggregate.window_ms] = records.ends(aggregate.tiles)
        if aggregate.function.half_life_ms is not None:
            column = "count" if aggregate.function.name == "decayed_count" else f"sum_{aggregate.column}"
            if column == "count" and aggregate.column is not None:
                column = f"count_{aggregate.column}"
            values = _decayed(aggregate, records, records.values[column])
        else:
            values = folds.finish(aggregate, _merged(table, aggregate, records, windows[aggregate.window_ms]))
        out[aggregate.feature] = np.where(found, values, np.nan)
    return out, lambda: _marks(table, records)


def _marks(table: Table, records: _Records) -> Marks:
    ends = records.starts[1:] if table.hop_ms is None else records.ends(table.keep)
    edges = records.edges(ends)
    ingest = records.folded(np.maximum, -1, records.values["ingest"], edges)
    hashes = records.folded(np.add, 0, records.values["hash"].view(np.int64), edges)  # wraps as the unsigned sum does
    return Marks(records.total("count", ends), ingest, hashes.view(np.uint64))


def _merged(table: Table, aggregate: Aggregate, records: _Records, ends: Ints) -> dict[str, Ints]:
    if aggregate.column is None:
        return {"count": records.total("count", ends)}
    merged = {}
    for partial in table.partials:
        if partial.column != aggregate.column or partial.kind not in _NEEDS[aggregate.function.name]:
            continue
        if partial.kind == "sumsq":
            merged["sumsq_hi"], merged["sumsq_lo"] = _sum_wide(records, partial, ends)
        elif partial.kind in _EXTREMES:
            merged[partial.kind] = records.extreme(partial.kind, partial.name, ends)
        else:
            merged[partial.kind] = records.total(partial.name, ends)
    return merged


def _sum_wide(records: _Records, partial: Partial, ends: Ints) -> tuple[NDArray[Any], NDArray[Any]]:
    highs, lows = records.values[partial.name + "_hi"].tolist(), records.values[partial.name + "_lo"].tolist()
    wide = [folds.join_words(high, low) for high, low in zip(highs, lows, strict=True)]
    totals = [sum(wide[begin:end]) for begin, end in zip(records.starts.tolist(), ends.tolist(), strict=False)]
    words = [folds.split_words(total) for total in totals]
    return np.array([high for high, _ in words], object), np.array([low for _, low in words], object)


def _decayed(aggregate: Aggregate, records: _Records, amounts: NDArray[Any]) -> Floats:
    """Slots of one tile are added as integers before the tile is weighed; records lie newest first."""
    inside = records.age <= aggregate.tiles
    owner, age, amounts = records.owner[inside], records.age[inside], amounts[inside].astype(np.int64)
    if not len(owner):
        return np.zeros(records.n)
    starts = np.flatnonzero(np.r_[True, (owner[1:] != owner[:-1]) | (age[1:] != age[:-1])])
    totals = np.add.reduceat(amounts, starts)
    return folds.decayed(aggregate, owner[starts][::-1], age[starts][::-1], totals[::-1], records.n)


def _readable(table: Table, blob: bytes | None, at: int) -> list[codec.ListTile]:
    """Tiles that the table's longest window reads."""
    tiles = [] if blob is None else codec.unpack_list_tiles(blob)
    return tiles if table.hop_ms is None else [tile for tile in tiles if at // table.hop_ms - tile.tile <= table.keep]


def _marks_of_lists(tiles: Sequence[Sequence[codec.ListTile]]) -> Marks:
    wrapped = [sum(tile.hash for tile in held) % 2**64 for held in tiles]
    return Marks(
        np.array([sum(tile.count for tile in held) for held in tiles], np.int64),
        np.array([max((tile.ingest for tile in held), default=-1) for held in tiles], np.int64),
        np.array(wrapped, np.uint64),
    )


def _lists(
    table: Table,
    aggregate: Aggregate,
    tiles: Sequence[Sequence[codec.ListTile]],
    at: Ints,
    found: NDArray[np.bool_],
) -> Floats | list[list[Any] | None]:
    payloads = [
        [tile.payload for tile in held if _inside(table, aggregate, tile.tile, int(instant))] if ok else None
        for held, instant, ok in zip(tiles, at, found, strict=True)
    ]
    if table.kind == "distinct":
        return np.array(
            [np.nan if held is None else folds.estimate(folds.merge_sketches(held)) for held in payloads], np.float64
        )
    return [None if held is None else _ordered(aggregate, held) for held in payloads]


def _inside(table: Table, aggregate: Aggregate, tile: int, at: int) -> bool:
    return table.hop_ms is None or at // table.hop_ms - tile <= aggregate.tiles


def _ordered(aggregate: Aggregate, payloads: Sequence[bytes]) -> list[Any]:
    """Newest first, by event time, then event id; a set's members sorted."""
    n = aggregate.function.n or 0
    entries = [entry for payload in payloads for entry in codec.unpack_entries(payload)]
    if aggregate.function.name == "members":
        return folds.members(entries, n)
    kept = folds.newest_distinct(entries, n) if aggregate.function.name == "last_distinct" else sorted(entries)
    return [folds.as_value(text, aggregate.kind) for _, _, text in kept[::-1][:n]]
