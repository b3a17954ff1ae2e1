"""Events in total order and the windows of many queries among them, in numpy; no engine.

Events lie sorted by (group, event time, event id), so a window is one range of rows, and a sum is a difference of two
prefix sums, exact in int64. What was not yet known at a query's instant (event_time < t <= ingest_time) is taken out
again, one (query, event) pair each. What no prefix sum can answer visits the pairs of its windows, a bounded number
at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headwater.folds import Ints
from headwater.plan import Aggregate

PAIRS = 4_000_000
"""Pairs of (query, event) held at a time."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Column:
    """A projected column: int64 values (fixed point where fractional) or an Arrow string array, and which are given."""

    values: Any
    valid: Mask

    def take(self, rows: NDArray[Any]) -> "Column":
        values = self.values.take(pa.array(rows)) if isinstance(self.values, pa.Array) else self.values[rows]
        return Column(values, self.valid[rows])

    def texts(self, rows: NDArray[Any]) -> list[str]:
        """Canonical texts of given values: a string itself, an integer in digits."""
        if isinstance(self.values, pa.Array):
            texts: list[str] = self.values.take(pa.array(rows)).to_pylist()
            return texts
        return [str(value) for value in self.values[rows].tolist()]

    def coded(self, rows: NDArray[Any]) -> tuple[list[str], NDArray[Any]]:
        """Distinct canonical texts of given values, and the place of each row's among them."""
        if isinstance(self.values, pa.Array):
            encoded = self.values.take(pa.array(rows)).dictionary_encode()
            return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        distinct, code = np.unique(self.values[rows], return_inverse=True)
        return [str(value) for value in distinct.tolist()], code


@dataclass(frozen=True, slots=True)
class Events:
    """Distinct events of a projection.

    ``group, event_time, ingest_time``: int64 (m,), ``group`` a code from 0; ``event_id``: Arrow strings (m,).
    """

    group: Ints
    event_time: Ints
    ingest_time: Ints
    event_id: pa.Array
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.group)

    def sorted(self) -> "Events":
        """In the total order of each group: event time, then event id, which is looked at only where times meet."""
        order = np.lexsort((self.event_time, self.group))
        same = ~np.any([np.diff(values[order]) for values in (self.group, self.event_time)], axis=0)
        tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same]) if same.any() else np.empty(0, np.int64)
        if len(tied):
            run = np.cumsum(~np.r_[False, same])[tied]
            keys = pa.table({"run": run, "id": self.event_id.take(pa.array(order[tied]))})
            settled = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
            order[tied] = order[tied][settled.to_numpy().astype(np.int64)]
        return self.take(order)

    def take(self, rows: Ints) -> "Events":
        """Return these rows, in this order."""
        return Events(
            self.group[rows], self.event_time[rows], self.ingest_time[rows], self.event_id.take(pa.array(rows)),
            {name: column.take(rows) for name, column in self.columns.items()},
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Queries:
    """Which entity's values at which instant: ``group`` (-1 where no event has it) and ``at``, int64 (q,)."""

    group: Ints
    at: Ints


class Timeline:
    """Sorted events, and where each query's windows begin and end among them.

    With ``known``, a window also leaves out what was ingested at or after its instant.
    """

    def __init__(self, events: Events, queries: Queries, known: bool) -> None:
        self.events, self.queries, self.known = events, queries, known
        self._times = np.unique(events.event_time)
        self._span = len(self._times) + 1
        self._keys = events.group * self._span + np.searchsorted(self._times, events.event_time)
        self.end = self._position(queries.at)

    def __len__(self) -> int:
        return len(self.queries.at)

    def start(self, aggregate: Aggregate) -> Ints:
        """First row of each query's window: its tail is cut at a hop."""
        if aggregate.window_ms is None or aggregate.hop_ms is None:
            return self.since(None)
        return self._position((self.queries.at - aggregate.window_ms) // aggregate.hop_ms * aggregate.hop_ms)

    def since(self, duration_ms: int | None) -> Ints:
        """First row within exactly this duration before each query; ``None``: of its group."""
        if duration_ms is None:
            return np.searchsorted(self._keys, self.queries.group * self._span).astype(np.int64)
        return self._position(self.queries.at - duration_ms)

    def newest_time(self) -> Ints:
        """Event time of the last event before each query, known or not; -1 where there is none."""
        times = np.r_[self.events.event_time, -1]
        return np.where(self.end > self.since(None), times[self.end - 1], -1)

    def total(self, amounts: NDArray[Any], start: Ints) -> NDArray[Any]:
        """Exact sum of int64 or Python integers over each window."""
        prefix = np.zeros(len(amounts) + 1, amounts.dtype)
        np.cumsum(amounts, out=prefix[1:])
        totals: NDArray[Any] = prefix[self.end] - prefix[start]
        for query, event in self._unknown():
            inside = event >= start[query]
            np.subtract.at(totals, query[inside], amounts[event[inside]])
        return totals

    def extreme(self, fold: np.ufunc, amounts: Ints, neutral: int, start: Ints) -> Ints:
        """Minimum or maximum over each window, ``neutral`` where it is empty: two overlapping powers of two cover it.

        References
        ----------
        Bender, Farach-Colton, "The LCA problem revisited", LATIN 2000 (the sparse table).
        """
        missing = self.unknown_count > 0
        length = np.where(missing, 0, self.end - start)
        out = np.full(len(self), neutral, np.int64)
        level, width = amounts, 1
        while width <= length.max(initial=0):
            held = np.flatnonzero((length >= width) & (length < 2 * width))
            out[held] = fold(level[start[held]], level[self.end[held] - width])
            level = fold(level[:-width], level[width:]) if len(level) > width else level[:0]
            width *= 2
        everything = np.ones(len(self.events), np.bool_)
        for query, event in self.pairs(np.where(missing, start, self.end), everything):
            fold.at(out, query, amounts[event])
        return out

    def pairs(self, start: Ints, among: Mask, queries: int | None = None) -> Iterator[tuple[Ints, Ints]]:
        """(query, event) of each window's events ``among`` those given, ascending, whole queries at a time."""
        for query, event in ranges(start, self.end - start, queries):
            keep = among[event]
            if self.known:
                keep &= self.events.ingest_time[event] < self.queries.at[query]
            yield query[keep], event[keep]

    def newest(self, start: Ints, among: Mask, n: int) -> tuple[Ints, Ints]:
        """(query, event) of each window's last ``n`` events ``among`` those given; queries ascending, newest first."""
        given = np.flatnonzero(among)
        end = np.searchsorted(given, self.end)
        first = np.maximum(np.searchsorted(given, start), end - n - self.unknown_count)
        parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for query, at in ranges(first, end - first):
            event = given[at]
            if self.known:
                keep = self.events.ingest_time[event] < self.queries.at[query]
                query, event = query[keep], event[keep]
            last = rank(query[::-1])[::-1] < n
            order = np.lexsort((-event[last], query[last]))
            parts.append((query[last][order], event[last][order]))
        return np.concatenate([query for query, _ in parts]), np.concatenate([event for _, event in parts])

    @cached_property
    def unknown_count(self) -> Ints:
        """How many events each query's group had, but did not know of."""
        count = np.zeros(len(self), np.int64)
        for query, _ in self._unknown():
            np.add.at(count, query, 1)
        return count

    @cached_property
    def _late(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Events ingested after they happened: row, first query in ``order`` that misses it, how many do, ``order``."""
        at, group = self.queries.at, self.queries.group
        order = np.lexsort((at, group))
        times = np.unique(at)
        span = len(times) + 1
        keys = group[order] * span + np.searchsorted(times, at[order])
        rows = np.flatnonzero(self.events.ingest_time > self.events.event_time)
        owner = self.events.group[rows] * span
        first = np.searchsorted(keys, owner + np.searchsorted(times, self.events.event_time[rows], "right"))
        end = np.searchsorted(keys, owner + np.searchsorted(times, self.events.ingest_time[rows], "right"))
        missed = end > first
        return rows[missed], first[missed], (end - first)[missed], order

    def _unknown(self) -> Iterator[tuple[Ints, Ints]]:
        """(query, event) that had happened but was not known: event_time < t <= ingest_time."""
        if self.known:
            rows, first, count, order = self._late
            for late, query in ranges(first, count):
                yield order[query], rows[late]

    def _position(self, instants: Ints) -> Ints:
        """Row of the first event of each query's group at or after the instant."""
        place = self.queries.group * self._span + np.searchsorted(self._times, instants)
        return np.searchsorted(self._keys, place).astype(np.int64)


def newest_of_each(owner: Ints, row: Ints, code: Ints, n: int) -> tuple[Ints, Ints]:
    """(owner, row) of the last row of each code an owner has, its newest ``n``; owners ascending, newest first."""
    order = np.lexsort((row, code, owner))
    owner, row, code = owner[order], row[order], code[order]
    last = np.r_[starts(owner, code)[1:], len(owner)][: len(owner)] - 1
    owner, row = owner[last], row[last]
    order = np.lexsort((-row, owner))
    owner, row = owner[order], row[order]
    kept = rank(owner) < n
    return owner[kept], row[kept]


def ranges(start: Ints, count: Ints, owners: int | None = None) -> Iterator[tuple[Ints, Ints]]:
    """(owner, row) for the rows from ``start`` on of each owner, whole owners at a time.

    A part has at most ``owners`` owners and :data:`PAIRS` pairs, unless one owner alone has more.
    """
    ends = np.cumsum(count)
    first = 0
    while first < len(count):
        done = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, done + PAIRS, "right")), first + 1)
        last = last if owners is None else min(last, first + owners)
        held = count[first:last]
        owner = np.repeat(np.arange(first, last), held)
        skipped = np.repeat(ends[first:last] - held - done, held)
        yield owner, start[owner] + np.arange(len(owner)) - skipped
        first = last


def rank(owner: Ints) -> Ints:
    """Place of each row among the rows of its owner, which lie together."""
    first = starts(owner)
    return np.arange(len(owner)) - np.repeat(first, np.diff(np.r_[first, len(owner)]))


def starts(*keys: NDArray[Any]) -> Ints:
    """Rows at which a run of equal keys begins."""
    if not len(keys[0]):
        return np.empty(0, np.int64)
    changes = np.zeros(len(keys[0]), np.bool_)
    changes[0] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)
