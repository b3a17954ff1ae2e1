"""A view's values at many past instants at once: the kernel of the offline engine, in numpy.

Counts and sums are differences of prefix sums over a :class:`~headwater.timeline.Timeline`, lists and sketches are made
from the events of their windows; every value is finished by :mod:`headwater.folds`, as the online reader's is.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater import folds
from headwater.folds import Floats, Ints
from headwater.online import codec
from headwater.plan import Aggregate, View
from headwater.timeline import Column, Events, Mask, Queries, Timeline, newest_of_each, starts

__all__ = ["Column", "Events", "Folded", "Queries", "Values", "fold_at", "fold_windows"]

SKETCHES = 2_048
"""Dense sketches held at a time, 4 KiB each."""
Values = Floats | list[list[Any] | None]


@dataclass(frozen=True, slots=True)
class Folded:
    """Per query: ``values`` (feature to float64 (q,), NaN where none, or to a list each), ``found`` (an event within
    the ttl) and ``newest`` (time of the last event before the instant, known or not, -1 where none).
    """

    values: Mapping[str, Values]
    found: Mask
    newest: Ints


def fold_at(
    view: View, events: Events, queries: Queries, known: bool = True, features: Collection[str] | None = None
) -> Folded:
    """Fold each query's windows.

    Parameters
    ----------
    known
        Also ask that an event was ingested before the instant; otherwise only that it had happened.
    features
        The view's features to compute; all by default.
    """
    timeline = Timeline(events.sorted(), queries, known)
    every = np.ones(len(events), np.int64)
    found: Mask = timeline.total(every, timeline.since(view.ttl_ms or None)) > 0
    return Folded(fold_windows(view, timeline, found, features), found, timeline.newest_time())


def fold_windows(
    view: View, timeline: Timeline, found: Mask, features: Collection[str] | None = None
) -> dict[str, Values]:
    """Fold the windows of queries whose entity is ``found``; the others have no value."""
    values: dict[str, Values] = {}
    for aggregate in view.aggregates:
        if features is None or aggregate.feature in features:
            folded = _fold(timeline, aggregate)
            if isinstance(folded, list):
                values[aggregate.feature] = [one if seen else None for one, seen in zip(folded, found, strict=True)]
            else:
                values[aggregate.feature] = np.where(found, folded, np.nan)
    return values


def _fold(timeline: Timeline, aggregate: Aggregate) -> Values:
    column = None if aggregate.column is None else timeline.events.columns[aggregate.column]
    start, name = timeline.start(aggregate), aggregate.function.name
    if name in ("decayed_count", "decayed_sum"):
        return _decayed(timeline, aggregate, start, column)
    if name == "approx_count_distinct" and column is not None:
        return _distinct(timeline, start, column)
    if name in ("last", "last_distinct") and column is not None:
        return _last(timeline, aggregate, start, column)
    if name == "members" and column is not None:
        return _members(timeline, aggregate, start, column)
    merged: dict[str, Any] = {}
    if name in ("count", "mean", "stddev"):
        merged["count"] = timeline.total(_given(timeline, column), start)
    if column is not None and name in ("sum", "mean", "stddev"):
        merged["sum"] = timeline.total(_amounts(column, 0), start)
    if column is not None and name == "stddev":
        squares = timeline.total(_amounts(column, 0).astype(object) ** 2, start)
        words = [folds.split_words(int(square)) for square in squares]
        merged["sumsq_hi"], merged["sumsq_lo"] = [high for high, _ in words], [low for _, low in words]
    if column is not None and name == "min":
        amounts = _amounts(column, codec.EMPTY_MIN)
        merged["min"] = timeline.extreme(np.minimum, amounts, codec.EMPTY_MIN, start)
    if column is not None and name == "max":
        amounts = _amounts(column, codec.EMPTY_MAX)
        merged["max"] = timeline.extreme(np.maximum, amounts, codec.EMPTY_MAX, start)
    return folds.finish(aggregate, merged)


def _given(timeline: Timeline, column: Column | None) -> Ints:
    return np.ones(len(timeline.events), np.int64) if column is None else column.valid.astype(np.int64)


def _amounts(column: Column, neutral: int) -> Ints:
    """What an event brings to a fold; nothing where its value is null."""
    return np.where(column.valid, column.values, neutral)


def _decayed(timeline: Timeline, aggregate: Aggregate, start: Ints, column: Column | None) -> Floats:
    """Integer totals of each (query, tile) first, then weighed oldest first."""
    counts = column is None or aggregate.function.name == "decayed_count"
    amounts = _given(timeline, column) if counts or column is None else _amounts(column, 0)
    hop = aggregate.hop_ms or 1
    out = np.zeros(len(timeline))
    for query, event in timeline.pairs(start, amounts != 0):
        age = timeline.queries.at[query] // hop - timeline.events.event_time[event] // hop
        first = starts(query, age)
        if len(first):
            owners, owner = np.unique(query[first], return_inverse=True)
            totals = np.add.reduceat(amounts[event], first)
            out[owners] = folds.decayed(aggregate, owner, age[first], totals, len(owners))
    return out


def _distinct(timeline: Timeline, start: Ints, column: Column) -> Floats:
    """Registers of each query's sketch, dense, a bounded number of queries at a time."""
    index, rank = _registers(column)
    out = np.zeros(len(timeline))
    for query, event in timeline.pairs(start, column.valid, queries=SKETCHES):
        owners, owner = np.unique(query, return_inverse=True)
        registers = np.zeros((len(owners), 1 << folds.SKETCH_BITS), np.uint8)
        np.maximum.at(registers.reshape(-1), (owner << folds.SKETCH_BITS) + index[event], rank[event])
        out[owners] = folds.estimate_registers(registers)
    return out


def _registers(column: Column) -> tuple[Ints, NDArray[np.uint8]]:
    """Register and rank of each event's value; zeros where it is null."""
    given = np.flatnonzero(column.valid)
    texts, code = column.coded(given)
    packed = b"".join(folds.sketch([text]) for text in texts)
    sketches = np.frombuffer(packed, np.dtype([("index", "<u2"), ("rank", "u1")]))
    index, rank = np.zeros(len(column.valid), np.int64), np.zeros(len(column.valid), np.uint8)
    index[given], rank[given] = sketches["index"][code], sketches["rank"][code]
    return index, rank


def _last(timeline: Timeline, aggregate: Aggregate, start: Ints, column: Column) -> list[list[Any] | None]:
    if aggregate.function.name == "last":
        query, event = timeline.newest(start, column.valid, aggregate.function.n or 0)
    else:
        query, event = _last_distinct(timeline, aggregate, start, column)
    return _parted(query, [folds.as_value(text, aggregate.kind) for text in column.texts(event)], len(timeline))


def _last_distinct(timeline: Timeline, aggregate: Aggregate, start: Ints, column: Column) -> tuple[Ints, Ints]:
    """(query, event) of the newest occurrence of each value, the newest n."""
    given = np.flatnonzero(column.valid)
    code = np.zeros(len(column.valid), np.int64)
    code[given] = column.coded(given)[1]
    n = aggregate.function.n or 0
    parts = [newest_of_each(*pair, code[pair[1]], n) for pair in timeline.pairs(start, column.valid)]
    return _joined(parts)


def _members(timeline: Timeline, aggregate: Aggregate, start: Ints, column: Column) -> list[list[Any] | None]:
    """After each window's newest clear the newest operation of each value, the newest n; of these what was added."""
    given = np.flatnonzero(column.valid)
    texts, place = column.coded(given)
    told = [folds.operation(text) for text in texts]
    values = sorted({one[1] for one in told if one is not None})
    rank_of = {value: at for at, value in enumerate(values)}
    verb, code = np.full(len(column.valid), -1, np.int64), np.zeros(len(column.valid), np.int64)
    verb[given] = np.array([-1 if one is None else one[0] for one in told], np.int64)[place]
    code[given] = np.array([0 if one is None else rank_of[one[1]] for one in told], np.int64)[place]
    cleared = np.full(len(timeline), -1, np.int64)
    parts = []
    for query, event in timeline.pairs(start, verb >= 0):
        clears = verb[event] == folds.CLEARS
        np.maximum.at(cleared, query[clears], event[clears])
        after = ~clears & (event > cleared[query])
        touched, last = newest_of_each(query[after], event[after], code[event[after]], aggregate.function.n or 0)
        added = verb[last] == folds.ADDS
        parts.append((touched[added], code[last[added]]))
    query, member = _joined(parts)
    order = np.lexsort((member, query))
    return _parted(query[order], [values[at] for at in member[order].tolist()], len(timeline))


def _joined(parts: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    nothing = np.empty(0, np.int64)
    return np.concatenate([nothing, *(left for left, _ in parts)]), np.concatenate(
        [nothing, *(right for _, right in parts)]
    )


def _parted(query: Ints, values: list[Any], n: int) -> list[list[Any] | None]:
    """Lists of n queries, whose values lie together."""
    ends = np.cumsum(np.bincount(query, minlength=n)).tolist()
    return [values[first:end] for first, end in zip([0, *ends], ends, strict=False)]
