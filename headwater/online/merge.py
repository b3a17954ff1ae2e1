"""Merge tiles into windows at one instant per entity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater import folds
from headwater.folds import Floats, Ints
from headwater.online import codec, kernels
from headwater.online.replies import Blobs
from headwater.plan import FIXED_SCALE, Aggregate, Table

_KINDS = {"count": kernels.SUM, "sum": kernels.SUM, "min": kernels.MIN, "max": kernels.MAX, "sumsq": kernels.WIDE}
_NEEDS = {
    "count": ("count",), "sum": ("sum",), "min": ("min",), "max": ("max",), "mean": ("sum", "count"),
    "stddev": ("count", "sum", "sumsq"),
}  # fmt: skip
"""Partials of its column that a function reads; of a mean, first what is divided."""
_FINISHED = {
    "count": kernels.SUM, "sum": kernels.SUM, "min": kernels.MIN, "max": kernels.MAX, "mean": kernels.MEAN,
}  # fmt: skip
"""Functions whose values a compiled loop makes of what was folded, as :func:`folds.finish` does."""
_EVER = int(np.iinfo(np.int64).max)
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
Values = Mapping[str, Floats | list[list[Any] | None]]


class Merge:
    """How some features come out of a table's tiles; what does not depend on the tiles is worked out once."""

    def __init__(self, table: Table, aggregates: Sequence[Aggregate]) -> None:
        self._table, self._aggregates = table, aggregates
        self._record = codec.record_dtype(table).itemsize if table.kind == "fixed" else 0
        self._fold = _Fold(table, aggregates) if table.kind == "fixed" else None
        ages = [(_EVER if one.window_ms is None else one.tiles, one.feature) for one in aggregates]
        self._by_age = sorted(ages, key=itemgetter(0))
        self._ages = np.array([age for age, _ in self._by_age], np.int64)

    def of(self, blobs: Blobs, at: Ints, found: NDArray[np.bool_]) -> tuple[Values, TellMarks]:
        """Values of the features, NaN or ``None`` where not found, and what tells the marks of what made them.

        Parameters
        ----------
        blobs, at, found : (n,)
            Per entity: its blob, the instant, whether an event lies in its ttl.
        """
        hops = np.zeros(len(at), np.int64) if self._table.hop_ms is None else at // self._table.hop_ms
        return self._values(blobs, hops, found), lambda places: self._marks(blobs.take(places), hops[places])

    def _values(self, blobs: Blobs, hops: Ints, found: NDArray[np.bool_]) -> Values:
        if not self._aggregates:
            return {}
        if self._fold is not None:
            return self._fold.values(blobs, hops, found)
        if self._table.kind == "distinct":
            return self._distinct(blobs, hops, found)
        tiles = [[] if blob is None else codec.unpack_list_tiles(blob) for blob in blobs.listed()]
        return {one.feature: _lists(self._table, one, tiles, hops, found) for one in self._aggregates}

    def _distinct(self, blobs: Blobs, hops: Ints, found: NDArray[np.bool_]) -> Values:
        taken, powers = kernels.sketches(blobs.raw, blobs.starts, blobs.sizes, hops, self._ages, folds.POWERS)
        estimates = [folds.estimates(*one) for one in zip(taken, powers, strict=True)]
        told = zip(self._by_age, estimates, strict=True)
        return {feature: np.where(found, values, np.nan) for (_, feature), values in told}

    def _marks(self, blobs: Blobs, hops: Ints) -> Marks:
        oldest = _EVER if self._table.hop_ms is None else self._table.keep
        count, ingest, hashes = kernels.marks(blobs.raw, blobs.starts, blobs.sizes, self._record, hops, oldest)
        return Marks(count, ingest, hashes.view(np.uint64))


class _Fold:
    """Features of a fixed table: columns folded over windows, then a value made of one or two of the folds."""

    def __init__(self, table: Table, aggregates: Sequence[Aggregate]) -> None:
        self._layout = codec.record_dtype(table)
        self._decayed = [(one, *self._amount(one)) for one in aggregates if one.function.half_life_ms is not None]
        parts = {one.feature: _parts(table, one) for one in aggregates if one.function.half_life_ms is None}
        wanted = sorted({part for held in parts.values() for part in held.values()}, key=itemgetter(2))
        columns = list(dict.fromkeys(part[:2] for part in wanted))
        self._windows = (
            np.array([codec.offset_of(self._layout, name) for name, _ in columns], np.int64),
            np.array([kind for _, kind in columns], np.int64),
            np.array([columns.index(part[:2]) for part in wanted], np.int64),
            np.array([age for *_, age in wanted], np.int64),
        )
        places = {feature: {kind: wanted.index(part) for kind, part in held.items()} for feature, held in parts.items()}
        plain = [one for one in aggregates if one.feature in places and one.function.name in _FINISHED]
        self._wide = [(one, places[one.feature]) for one in aggregates if one.feature in places and one not in plain]
        self._names = [one.feature for one in plain]
        needed = [[places[one.feature][kind] for kind in _NEEDS[one.function.name]] for one in plain]
        self._finished = (
            np.array([_FINISHED[one.function.name] for one in plain], np.int64),
            np.array([first for first, *_ in needed], np.int64),
            np.array([last for *_, last in needed], np.int64),
            np.array([_scale(one) for one in plain], np.float64),
        )

    def values(self, blobs: Blobs, hops: Ints, found: NDArray[np.bool_]) -> Values:
        size = self._layout.itemsize
        high, low = kernels.windows(blobs.raw, blobs.starts, blobs.sizes, size, hops, *self._windows)
        values = dict(zip(self._names, kernels.finished(high, found, *self._finished), strict=True))
        for aggregate, places in self._wide:
            merged = {kind: high[place] for kind, place in places.items()}
            merged |= {"sumsq_hi": high[places["sumsq"]], "sumsq_lo": low[places["sumsq"]].view(np.uint64)}
            values[aggregate.feature] = np.where(found, folds.finish(aggregate, merged), np.nan)
        for aggregate, offset, kind in self._decayed:
            tiles = kernels.tiles(blobs.raw, blobs.starts, blobs.sizes, size, hops, aggregate.tiles, offset, kind)
            values[aggregate.feature] = np.where(found, folds.decayed(aggregate, *tiles, len(blobs)), np.nan)
        return values

    def _amount(self, aggregate: Aggregate) -> tuple[int, int]:
        """Where the column lies that is weighed by age, and how it is folded."""
        column = "count" if aggregate.function.name == "decayed_count" else f"sum_{aggregate.column}"
        if column == "count" and aggregate.column is not None:
            column = f"count_{aggregate.column}"
        return codec.offset_of(self._layout, column), kernels.COUNT if column == "count" else kernels.SUM


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


def _scale(aggregate: Aggregate) -> float:
    """What a folded number is divided by."""
    return float(FIXED_SCALE) if aggregate.kind == "fixed" and aggregate.function.name != "count" else 1.0


def _lists(
    table: Table,
    aggregate: Aggregate,
    tiles: Sequence[Sequence[codec.ListTile]],
    hops: Ints,
    found: NDArray[np.bool_],
) -> list[list[Any] | None]:
    payloads = [
        [tile.payload for tile in held if table.hop_ms is None or hop - tile.tile <= aggregate.tiles] if ok else None
        for held, hop, ok in zip(tiles, hops.tolist(), found, strict=True)
    ]
    return [None if held is None else _ordered(aggregate, held) for held in payloads]


def _ordered(aggregate: Aggregate, payloads: Sequence[bytes]) -> list[Any]:
    """Newest first, by event time, then event id; a set's members sorted."""
    n = aggregate.function.n or 0
    entries = [entry for payload in payloads for entry in codec.unpack_entries(payload)]
    if aggregate.function.name == "members":
        return folds.members(entries, n)
    kept = folds.newest_distinct(entries, n) if aggregate.function.name == "last_distinct" else sorted(entries)
    return [folds.as_value(text, aggregate.kind) for _, _, text in kept[::-1][:n]]
