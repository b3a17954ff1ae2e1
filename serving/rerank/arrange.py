"""Which list is shown: the best one or, for a declared share of requests, one that was drawn, with how likely it was.

References
----------
Plackett, "The analysis of permutations", Applied Statistics 1975; Luce, "Individual choice behavior", 1959.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.draws import PLACKETT_LUCE, draw_weights
from serving.rerank.greedy import NO_CAPS, Caps, Floats, Rows, Vectors, dpp, mmr

Chances = NDArray[np.float64]
Bools = NDArray[np.bool_]
METHODS: Mapping[str, Callable[..., Rows]] = {"mmr": mmr, "dpp": dpp}


class Exploring(Protocol):
    """How much of what is shown is left to chance."""

    @property
    def share(self) -> float:
        """Of requests whose whole list is drawn."""
        ...

    @property
    def temperature(self) -> float:
        """Of that draw, where relevance goes from 0 to 1: the higher, the more alike are the chances."""
        ...

    @property
    def epsilon(self) -> float:
        """Share of the other requests in which one place goes to a candidate that would not be shown."""
        ...

    @property
    def slot(self) -> int:
        """That place, from 1."""
        ...


@dataclass(frozen=True, slots=True)
class Arranged:
    """Rows of candidates, best first.

    Attributes
    ----------
    propensity : (n_shown,)
        Probability that each place got its item given the places above it, over all that might have been drawn; their
        product is the probability of the list.
    policy
        ``greedy``, ``slot`` or ``plackett_luce``: how this very list came about.
    """

    rows: Rows
    propensity: Chances
    policy: str = "greedy"

    def at(self, rows: Rows) -> "Arranged":
        """The same of candidates that are some ``rows`` of others."""
        return replace(self, rows=rows[self.rows])

    def with_pinned(self, pinned: Mapping[int, int]) -> "Arranged":
        """Rows put where they have to stand, by place from 1; or behind all others, where there are fewer."""
        rows, propensity = self.rows.tolist(), self.propensity.tolist()
        for place, row in sorted(pinned.items()):
            rows.insert(place - 1, row)
            propensity.insert(place - 1, 1.0)
        return replace(self, rows=np.array(rows, np.intp), propensity=np.array(propensity))


def arrange(
    scores: Floats, vectors: Vectors, limit: int, *, method: str, diversity: float, window: int = 0,
    caps: Caps = NO_CAPS, exploring: Exploring | None = None, seed: int = 0, may_explore: Bools | None = None,
) -> Arranged:  # fmt: skip
    """Fill the places.

    Parameters
    ----------
    scores, vectors
        As :func:`serving.rerank.greedy.mmr` has them.
    seed
        Of what is left to chance; one request, one seed.
    may_explore : (n,)
        What the slot may take, all by default; where nothing of it is left the list is as without a slot.
    """
    greedy = METHODS[method](scores, vectors, limit, diversity, window=window, caps=caps)
    if exploring is None or not (exploring.share or exploring.epsilon) or not len(greedy):
        return Arranged(greedy, np.ones(len(greedy)))
    rng = np.random.default_rng(seed)
    weights = draw_weights(scores, np.zeros(len(scores), np.int64), 1, exploring.temperature)
    left = np.setdiff1d(np.arange(len(scores)) if may_explore is None else np.flatnonzero(may_explore), greedy)
    epsilon = exploring.epsilon if exploring.slot <= len(greedy) and len(left) else 0.0
    rows, policy = greedy, "greedy"
    if rng.random() < exploring.share:
        rows, policy = plackett_luce(weights, len(greedy), rng, caps), PLACKETT_LUCE
    elif rng.random() < epsilon:
        rows, policy = greedy.copy(), "slot"
        rows[exploring.slot - 1] = rng.choice(left)
    drawn = np.cumprod(chances(weights, rows, caps))
    in_slot = epsilon * _same_but(rows, greedy, exploring.slot - 1, left) if epsilon else 0.0
    prefix = exploring.share * drawn + (1 - exploring.share) * ((1 - epsilon) * _same(rows, greedy) + in_slot)
    return Arranged(rows, prefix / np.append(1.0, prefix[:-1]), policy)


def plackett_luce(weights: Chances, limit: int, rng: np.random.Generator, caps: Caps = NO_CAPS) -> Rows:
    """Draw place after place, each item with a chance in proportion to its weight (n,) among those still allowed."""
    rows: list[int] = []
    for _ in range(limit):
        among = np.where(_may_follow(rows, len(weights), caps), weights, 0.0)
        total = np.cumsum(among)
        rows.append(int(np.searchsorted(total, rng.random() * total[-1], side="right")))
    return np.array(rows, np.intp)


def chances(weights: Chances, rows: Rows, caps: Caps = NO_CAPS) -> Chances:
    """How likely :func:`plackett_luce` is to draw each of ``rows`` after those before it (len(rows),)."""
    found = np.empty(len(rows))
    for place, row in enumerate(rows.tolist()):
        allowed = _may_follow(rows[:place].tolist(), len(weights), caps)
        found[place] = weights[row] / weights[allowed].sum() if allowed[row] else 0.0
    return found


def _may_follow(above: list[int], n: int, caps: Caps) -> NDArray[np.bool_]:
    """Items that may come next: those that keep the caps or, where none does, all that are left."""
    free = np.ones(n, bool)
    free[above] = False
    kept = free.copy()
    for groups, most in zip(*caps, strict=True):
        held = np.bincount(groups[above][groups[above] >= 0], minlength=int(groups.max(initial=-1)) + 1)
        kept &= ~((held >= most)[np.maximum(groups, 0)] & (groups >= 0)) if len(held) else True
    return kept if kept.any() else free


def _same(rows: Rows, greedy: Rows) -> Chances:
    """1 for as long as the list is the other one."""
    return np.asarray(np.logical_and.accumulate(rows == greedy), np.float64)


def _same_but(rows: Rows, greedy: Rows, slot: int, left: Rows) -> Chances:
    """As ``_same``, where any of ``left`` stands in one place."""
    alike = rows == greedy
    alike[slot] = rows[slot] in left
    found = np.logical_and.accumulate(alike).astype(np.float64)
    found[slot:] /= max(len(left), 1)
    return found
