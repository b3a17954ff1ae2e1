"""Diversity, one place at a time: each goes to the item of greatest worth given those above it.

References
----------
Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
Chen, Zhang and Zhou, "Fast greedy MAP inference for determinantal point process", NeurIPS 2018.
"""

from dataclasses import dataclass

import numpy as np
from numba import types
from numpy.typing import NDArray

from headwater.loops import compiled

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.intp]
Places = NDArray[np.int64]
Caps = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Groups of each item (n_caps, n), -1 for none, and how many of one group may be shown (n_caps,)."""

POOL = 5
"""Places looked at for each place shown: what lies deeper is not worth its difference."""
NO_CAPS: Caps = (np.empty((0, 0), np.int32), np.empty(0, np.int32))
SPENT, WORST = 1e-6, -1e300
"""What is left of an item's length beside those above it, below which it is one of them again; its worth then."""


@dataclass(frozen=True, slots=True)
class OfItems:
    """Vectors of some items (n, dim), fetched from those of all for the rows that are looked at."""

    every: Floats
    items: NDArray[np.int32]

    def __getitem__(self, rows: Rows) -> Floats:
        return np.asarray(self.every[self.items[rows]])


Vectors = Floats | OfItems


def mmr(
    scores: Floats, vectors: Vectors, limit: int, diversity: float, *,
    window: int = 0, caps: Caps = NO_CAPS, pool: int = POOL,
) -> Rows:  # fmt: skip
    """Maximal marginal relevance: each place goes to the item of greatest
    ``(1 - diversity) * relevance - diversity * likeness to the likest item above it``.

    Relevance is the score, scaled so that the pool's best is 1 and its worst 0; ties go to the earlier row.

    Parameters
    ----------
    scores : (n,)
    vectors : (n, dim)
        Unit vectors; likeness is their product.
    diversity
        0 is the order of the scores, 1 looks at likeness alone.
    window
        Of the places above, only the last so many count; 0 for all.
    caps
        Kept while anything else is left.
    pool
        Candidates looked at for each place.

    Returns
    -------
    Rows, best first (at most limit,).
    """
    rows, relevance, units, groups = _pool(scores, vectors, limit * pool, caps)
    if diversity <= 0:
        units = units[:0]  # nothing is like anything
    gain = np.asarray((1.0 - diversity) * relevance, np.float32)
    places = _mmr(gain, units, groups, caps[1], np.float32(diversity), limit, window or limit)
    chosen: Rows = rows[places]
    return _filled(chosen, scores, limit, caps)


def dpp(
    scores: Floats, vectors: Vectors, limit: int, diversity: float, *,
    window: int = 0, caps: Caps = NO_CAPS, pool: int = POOL,
) -> Rows:  # fmt: skip
    """Greedy choice of the most probable set of a determinantal point process, as parameters of :func:`mmr`.

    Its kernel is ``q_i q_j v_i · v_j`` with ``log q = relevance (1 - diversity) / (2 diversity)``, so each place goes
    to the item of greatest ``2 log q_i + log(what is left of v_i outside the span of those above)``. An item that is
    wholly in that span comes after all others.
    """
    if diversity <= 0:
        return mmr(scores, vectors, limit, 0.0, caps=caps, pool=pool)
    rows, relevance, units, groups = _pool(scores, vectors, limit * pool, caps)
    gain = relevance.astype(np.float64) * ((1.0 - diversity) / diversity)
    places = _dpp(gain, units, groups, caps[1], limit, window or limit)
    chosen: Rows = rows[places]
    return _filled(chosen, scores, limit, caps)


def _pool(scores: Floats, vectors: Vectors, size: int, caps: Caps) -> tuple[Rows, Floats, Floats, NDArray[np.int32]]:
    """Rows of the best, their relevance, their vectors one dimension a row, and their groups."""
    rows = np.argsort(-scores, kind="stable")[:size]
    units = np.ascontiguousarray(vectors[rows].T, np.float32)
    groups = np.ascontiguousarray(caps[0][:, rows]) if len(caps[1]) else np.empty((0, len(rows)), np.int32)
    return rows, _scaled(scores[rows]), units, groups


def _filled(chosen: Rows, scores: Floats, limit: int, caps: Caps) -> Rows:
    """Where caps left places empty: the best of all that keep them, then the best."""
    missing = min(limit, len(scores)) - len(chosen)
    if missing <= 0:
        return chosen
    left = np.argsort(-scores, kind="stable")
    left = left[~np.isin(left, chosen)]
    taken = chosen.tolist()
    for row in left.tolist():
        if len(taken) < limit and all(
            groups[row] < 0 or (groups[taken] == groups[row]).sum() < most
            for groups, most in zip(*caps, strict=True)
        ):  # fmt: skip
            taken.append(row)
    rest = left[~np.isin(left, taken)][: limit - len(taken)]
    return np.asarray(np.concatenate([taken, rest]), np.intp)


def _scaled(scores: Floats) -> Floats:
    if not len(scores):
        return scores
    low, high = scores.min(), scores.max()
    return np.asarray((scores - low) / (high - low) if high > low else np.zeros(len(scores)), np.float32)


_GROUPS, _MOST = types.int32[:, ::1], types.int32[::1]


@compiled(types.boolean(types.int64, types.int64[::1], _GROUPS, _MOST))
def _allowed(item: int, chosen: Places, groups: NDArray[np.int32], most: NDArray[np.int32]) -> bool:
    for cap in range(len(most)):
        group, held = groups[cap, item], 0
        if group >= 0:
            for above in chosen:
                held += groups[cap, above] == group
            if held >= most[cap]:
                return False
    return True


@compiled(types.void(types.float32[::1], types.float32, types.float32[::1]))
def _add(row: Floats, weight: np.float32, other: Floats) -> None:
    for i in range(len(row)):
        row[i] += weight * other[i]


@compiled(types.void(types.float32[::1], types.float32[::1]))
def _raise(row: Floats, other: Floats) -> None:
    for i in range(len(row)):
        row[i] = max(row[i], other[i])


@compiled(types.int64[::1](types.float32[::1], types.float32[:, ::1], _GROUPS, _MOST, types.float32, types.int64,
                           types.int64))  # fmt: skip
def _mmr(
    gain: Floats, units: Floats, groups: NDArray[np.int32], most: NDArray[np.int32], diversity: np.float32,
    limit: int, window: int,
) -> Places:  # fmt: skip
    n = len(gain)
    chosen = np.empty(min(limit, n), np.int64)
    free, likeness = np.ones(n, np.bool_), np.zeros((len(chosen), n), np.float32)
    likest = np.zeros(n, np.float32)
    for place in range(len(chosen)):
        best, worth_of_best = -1, np.float32(0)
        for i in range(n):
            worth = gain[i] - diversity * likest[i]
            if free[i] and (best < 0 or worth > worth_of_best) and _allowed(i, chosen[:place], groups, most):
                best, worth_of_best = i, worth
        if best < 0:
            return chosen[:place]
        chosen[place], free[best] = best, False
        for d in range(len(units)):
            _add(likeness[place], units[d, best], units[d])
        if place == 0 or place >= window:  # nothing is above yet, or the place that leaves takes its likeness along
            likest[:] = likeness[place]
            for above in range(max(0, place + 1 - window), place):
                _raise(likest, likeness[above])
        else:
            _raise(likest, likeness[place])
    return chosen


@compiled(types.void(types.float64[::1], types.float64, types.float64[::1]))
def _add_double(row: Doubles, weight: float, other: Doubles) -> None:
    for i in range(len(row)):
        row[i] += weight * other[i]


@compiled(types.void(types.float64[:, ::1], types.float64[::1], types.float32[::1], types.int64, types.int64))
def _condition(factor: Doubles, left: Doubles, likeness: Floats, item: int, height: int) -> None:
    """Take what lies along one more item away from what is left of all."""
    row = factor[height]
    if left[item] <= SPENT:
        row[:] = 0.0
        return
    row[:] = likeness
    for above in range(height):
        _add_double(row, -factor[above, item], factor[above])
    scale = 1.0 / np.sqrt(left[item])
    for i in range(len(left)):
        row[i] *= scale
        left[i] -= row[i] * row[i]


@compiled(types.int64[::1](types.float64[::1], types.float32[:, ::1], _GROUPS, _MOST, types.int64, types.int64))
def _dpp(
    gain: Doubles, units: Floats, groups: NDArray[np.int32], most: NDArray[np.int32], limit: int, window: int
) -> Places:
    n = len(gain)
    chosen = np.empty(min(limit, n), np.int64)
    free, likeness, own = np.ones(n, np.bool_), np.zeros((len(chosen), n), np.float32), np.zeros(n)
    for d in range(len(units)):
        for i in range(n):
            own[i] += np.float64(units[d, i]) * units[d, i]
    longest = 0.0
    for i in range(n):
        longest = max(longest, own[i])
    left, factor = own.copy(), np.empty((min(window, len(chosen)), n))  # rows of the Cholesky factor
    for place in range(len(chosen)):
        best, worth_of_best = -1, -np.inf
        for i in range(n):
            if best >= 0 and gain[i] + np.log(longest) <= worth_of_best:
                break  # gains fall, and what is left of a vector is no longer than all of it
            if free[i] and _allowed(i, chosen[:place], groups, most):
                worth = gain[i] + np.log(left[i]) if left[i] > SPENT else WORST
                if best < 0 or worth > worth_of_best:
                    best, worth_of_best = i, worth
        if best < 0:
            return chosen[:place]
        chosen[place], free[best] = best, False
        for d in range(len(units)):
            _add(likeness[place], units[d, best], units[d])
        first = max(0, place + 1 - window)
        if first > 0:  # the place that left the window takes its row along: begin anew
            left[:] = own
        for above in range(first if first > 0 else place, place + 1):
            _condition(factor, left, likeness[above], chosen[above], above - first)
    return chosen
