"""Merge tiles into windows at one instant per entity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater import folds
from headwater.folds import Floats, Ints
from headwater.online import codec, kernels
from headwater.online.replies import Blobs
from headwater.plan import Aggregate, Table

_KINDS = {"count": kernels.SUM, "sum": kernels.SUM, "min": kernels.MIN, "max": kernels.MAX, "sumsq": kernels.WIDE}
_NEEDS = {
    "count": ("count",), "sum": ("sum",), "min": ("min",), "max": ("max",), "mean": ("count", "sum"),
    "stddev": ("count", "sum", "sumsq"),
}  # fmt: skip
"""Partials of its column that a function reads."""
_EVER = int(np.iinfo(np.int64).max)
_HEAD = {"count": kernels.COUNT, "ingest": kernels.MAX, "hash": kernels.SUM}
"""A record's head as a mark: the sum of hashes wraps as an unsigned one does."""
_Part = tuple[str, int, int]
"""A column of the record, how it is folded, and the greatest age that is read, in hops."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Which events were folded into a table's values, over all tiles that its longest window reads; each (n,).

    ``count``: how many. ``ingest``: the newest ingest time among them, -1 where there are none. ``hash``: their ids'
    hashes added up, wrapping at 64 bits.
    """

    count: Ints
    ingest: Ints
    hash: NDArray[np.uint64]


Places = NDArray[np.intp] | slice
TellMarks = Callable[[Places], Marks]
"""The marks of some of the entities that were read."""


def merge_table(
    table: Table, aggregates: Sequence[Aggregate], blobs: Blobs, at: Ints, found: NDArray[np.bool_]
) -> tuple[Mapping[str, Floats | list[list[Any] | None]], TellMarks]:
    """Values of a table's features, NaN or ``None`` where not found, and what tells the marks of what made them.

    Parameters
    ----------
    blobs, at, found : (n,)
        Per entity: its blob, the instant, whether an event lies in its ttl.
    """
    if table.kind == "fixed":
        return _fixed(table, aggregates, blobs, at, found)

    @cache
    def tiles() -> list[list[codec.ListTile]]:
        return [_readable(table, blob, int(instant)) for blob, instant in zip(blobs.listed(), at, strict=True)]

    values = {aggregate.feature: _lists(table, aggregate, tiles(), at, found) for aggregate in aggregates}
    return values, lambda places: _marks_of_lists(
        tiles()[places] if isinstance(places, slice) else [tiles()[place] for place in places]
    )


def _fixed(
    table: Table, aggregates: Sequence[Aggregate], blobs: Blobs, at: Ints, found: NDArray[np.bool_]
) -> tuple[dict[str, Floats], TellMarks]:
    hops = np.zeros(len(at), np.int64) if table.hop_ms is None else at // table.hop_ms
    parts = {one.feature: _parts(table, one) for one in aggregates if one.function.half_life_ms is None}
    folded = _folded(table, blobs, hops, [part for held in parts.values() for part in held.values()])
    out = {}
    for aggregate in aggregates:
        if aggregate.feature in parts:
            values = folds.finish(aggregate, _merged(parts[aggregate.feature], folded))
        else:
            values = _decayed(table, aggregate, blobs, hops)
        out[aggregate.feature] = np.where(found, values, np.nan)
    return out, lambda places: _marks(table, blobs.take(places), hops[places])


def _parts(table: Table, aggregate: Aggregate) -> dict[str, _Part]:
    """What a function needs folded, by the kind of the partial."""
    age = _EVER if aggregate.window_ms is None else aggregate.tiles
    if aggregate.column is None:
        return {"count": ("count", kernels.COUNT, age)}
    return {
        partial.kind: (partial.name + ("_hi" if partial.kind == "sumsq" else ""), _KINDS[partial.kind], age)
        for partial in table.partials
        if partial.column == aggregate.column and partial.kind in _NEEDS[aggregate.function.name]
    }


def _folded(table: Table, blobs: Blobs, hops: Ints, parts: Sequence[_Part]) -> Mapping[_Part, tuple[Ints, Ints]]:
    """The fold of each part, int64 (n,), and of a wide column its low words."""
    wanted = sorted(set(parts), key=itemgetter(2))
    columns = list(dict.fromkeys(part[:2] for part in wanted))
    layout = codec.record_dtype(table)
    high, low = kernels.windows(
        blobs.raw, blobs.starts, blobs.sizes, layout.itemsize, hops,
        np.array([codec.offset_of(layout, name) for name, _ in columns], np.int64),
        np.array([kind for _, kind in columns], np.int64),
        np.array([columns.index(part[:2]) for part in wanted], np.int64),
        np.array([age for *_, age in wanted], np.int64),
    )  # fmt: skip
    return dict(zip(wanted, zip(high, low, strict=True), strict=True))


def _merged(parts: Mapping[str, _Part], folded: Mapping[_Part, tuple[Ints, Ints]]) -> dict[str, Ints]:
    merged = {kind: folded[part][0] for kind, part in parts.items()}
    if "sumsq" in parts:
        merged["sumsq_hi"], low = folded[parts["sumsq"]]
        merged["sumsq_lo"] = low.view(np.uint64)
    return merged


def _decayed(table: Table, aggregate: Aggregate, blobs: Blobs, hops: Ints) -> Floats:
    column = "count" if aggregate.function.name == "decayed_count" else f"sum_{aggregate.column}"
    if column == "count" and aggregate.column is not None:
        column = f"count_{aggregate.column}"
    layout, kind = codec.record_dtype(table), kernels.COUNT if column == "count" else kernels.SUM
    tiles = kernels.tiles(
        blobs.raw,
        blobs.starts,
        blobs.sizes,
        layout.itemsize,
        hops,
        aggregate.tiles,
        codec.offset_of(layout, column),
        kind,
    )
    return folds.decayed(aggregate, *tiles, len(blobs))


def _marks(table: Table, blobs: Blobs, hops: Ints) -> Marks:
    age = _EVER if table.hop_ms is None else table.keep
    parts = [(name, kind, age) for name, kind in _HEAD.items()]
    count, ingest, hashes = (_folded(table, blobs, hops, parts)[part][0] for part in parts)
    return Marks(count, np.where(count > 0, ingest, -1), hashes.view(np.uint64))


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
