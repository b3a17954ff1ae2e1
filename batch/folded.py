"""Which archived events a served value was made from, told by the marks that were logged with it.

A mark is a count and a sum of event-id hashes. Where those of the events known at the instant are the same, just those
were folded. Where they are not, some events were still on their way, and the search is for the ones that were there:
the first so many to arrive; or all but one; or, among the latest to arrive, the subset that makes up the sum. Streams
that are merged and shuffled fold no prefix, but what is missing has arrived lately.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batch.tiles import event_hashes
from headwater.folds import Ints
from headwater.plan import Table, View
from headwater.timeline import Mask, Timeline

AGREES, IN_FLIGHT, LATE, UNEXPLAINED = range(4)
"""Folded were: the events known at the instant; those without some that had just arrived; without some that had arrived
longer ago; none that the archive can name."""
LATEST = (16, 36)
"""How many of the latest arrivals are searched, first few, then more: as many sums as 2 to half their number."""
UNEXPLAINED_ENOUGH = 100
"""So many failures of one table and bucket, at some 40 ms each, and few are searched for the rest of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Marks that were logged for each question, (q,); ``logged`` is False where there are none."""

    count: Ints
    hash: NDArray[np.uint64]
    logged: Mask


@dataclass(frozen=True, slots=True)
class Verdict:
    """``state`` uint8 (q,). Of questions whose folded events are not simply the known ones: ``rows`` of these events in
    the timeline, by question; ``missing``: the row of the first to arrive that was known and is not among them.
    """

    state: NDArray[np.uint8]
    rows: dict[int, Ints]
    missing: dict[int, int]


def judge(view: View, table: Table, timeline: Timeline, wanted: Wanted, fresh_ms: int) -> Verdict:
    """Find the events folded into one table for each of the timeline's queries, which see what was known."""
    hashes = event_hashes(timeline.events.event_id)
    start = longest_start(view, table, timeline)
    counts = timeline.total(np.ones(len(hashes), np.int64), start)
    sums = timeline.total(hashes.view(np.int64), start).view(np.uint64)
    state = np.zeros(len(timeline), np.uint8)
    rows: dict[int, Ints] = {}
    missing: dict[int, int] = {}
    failed = 0
    for query in np.flatnonzero(wanted.logged & ((counts != wanted.count) | (sums != wanted.hash))).tolist():
        at = int(timeline.queries.at[query])
        arrivals = _arrivals(timeline, int(start[query]), int(timeline.end[query]), at)
        latest = LATEST if failed < UNEXPLAINED_ENOUGH else LATEST[:1]
        held = subset(hashes[arrivals], int(wanted.count[query]), int(wanted.hash[query]), latest)
        if held is None:
            state[query] = UNEXPLAINED
            failed += 1
            continue
        rows[query] = np.sort(arrivals[held])
        left = arrivals[~held]
        left = left[timeline.events.ingest_time[left] < at]
        if len(left):
            missing[query] = int(left[0])
            state[query] = LATE if timeline.events.ingest_time[left[0]] < at - fresh_ms else IN_FLIGHT
    return Verdict(state, rows, missing)


def longest_start(view: View, table: Table, timeline: Timeline) -> Ints:
    """First row of each query that the table's tiles still hold for its longest window."""
    longest = max((a for a in view.aggregates if a.table == table.id), key=lambda aggregate: aggregate.tiles)
    return timeline.start(longest)


def _arrivals(timeline: Timeline, start: int, end: int, at: int) -> Ints:
    """Rows of a window that had arrived by an instant, in that millisecond included, in the order of arrival."""
    ingest = timeline.events.ingest_time[start:end]
    order = np.argsort(ingest, kind="stable")
    return start + order[ingest[order] <= at]


def subset(hashes: NDArray[np.uint64], count: int, total: int, searched: Sequence[int] = LATEST) -> Mask | None:
    """Events in the order of arrival of which ``count`` have hashes that sum to ``total``, None where none do.

    The first ``count``, else all but one, else all but some of the latest.
    """
    m = len(hashes)
    if not 0 <= count <= m:
        return None
    if _sum(hashes[:count]) == total:
        return np.arange(m) < count
    if count == m - 1:
        (gone,) = np.nonzero(hashes == np.uint64((_sum(hashes) - total) % 2**64))
        kept: Mask = np.arange(m) != (gone[0] if len(gone) else -1)
        return kept if len(gone) else None
    for latest in searched:
        first = max(0, m - latest)
        left = (total - _sum(hashes[:first])) % 2**64
        chosen = _chosen(hashes[first:], count - first, left) if count >= first else None
        if chosen is not None:
            return np.concatenate([np.ones(first, np.bool_), chosen])
        if not first:
            break
    return None


def _chosen(hashes: NDArray[np.uint64], count: int, total: int) -> Mask | None:
    """Subset of so many that sums to ``total``: sums of one half's subsets are looked up among the other half's.

    References
    ----------
    Horowitz, Sahni, "Computing partitions with applications to the knapsack problem", JACM 1974.
    """
    half = len(hashes) // 2
    (left, few), (right, many) = _subset_sums(hashes[:half]), _subset_sums(hashes[half:])
    order = np.argsort(right, kind="stable")
    wanted = np.uint64(total) - left  # wraps, as the sums do
    first = np.searchsorted(right[order], wanted, "left")
    last = np.searchsorted(right[order], wanted, "right")
    for one in np.flatnonzero(last > first).tolist():
        for other in order[first[one] : last[one]].tolist():
            if few[one] + many[other] == count:
                bits = one | other << half
                return np.array([bits >> place & 1 for place in range(len(hashes))], np.bool_)
    return None


def _subset_sums(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Ints]:
    """Sum and size of each of the 2^n subsets; bit i of a subset's number stands for element i."""
    sums, sizes = np.zeros(1, np.uint64), np.zeros(1, np.int64)
    for digest in hashes:
        sums, sizes = np.r_[sums, sums + digest], np.r_[sizes, sizes + 1]
    return sums, sizes


def _sum(hashes: NDArray[np.uint64]) -> int:
    return int(hashes.sum(dtype=np.uint64))
