"""Rules that need no training: what a learned model has to beat.

Each is a ``Recommender``; ``tests/models/test_laws.py`` says what all of them must hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions

OWN_HALF_LIFE = timedelta(days=90)
"""Best of 15 to 180 days and lifetime on the validation period."""
RECENT_HALF_LIFE = timedelta(days=14)


class Recommender(Protocol):
    """Anything that makes one list per user at an instant."""

    def top_k(self, users: Ints, at_ms: int, k: int) -> Ints:
        """Dense items, best first (len(users), k), from what was known strictly before ``at_ms``."""
        ...


def half_life_weight(age_ms: npt.NDArray[np.int64], half_life: timedelta) -> npt.NDArray[np.float64]:
    """1 for now, a half for one half-life ago."""
    return np.asarray(np.exp2(-age_ms / (half_life.total_seconds() * 1000)), np.float64)


@dataclass(frozen=True)
class Popularity:
    """The same list for everyone: products by purchases, decayed where a half-life is given."""

    history: Interactions
    half_life: timedelta | None = None

    def scores(self, at_ms: int) -> npt.NDArray[np.float64]:
        """Weight of every product (n_items,)."""
        known = self.history.before(at_ms)
        weights = None if self.half_life is None else half_life_weight(at_ms - known.at_ms, self.half_life)
        return np.bincount(known.item, weights, minlength=known.n_items).astype(np.float64)

    def top_k(self, users: Ints, at_ms: int, k: int) -> Ints:
        best = np.argsort(-self.scores(at_ms), kind="stable")[:k].astype(np.int32)
        return np.tile(_pad(best, k), (len(users), 1))


@dataclass(frozen=True)
class OwnFrequency:
    """Each user's own products by decayed purchase count; ties, and what is left, by popularity."""

    history: Interactions
    half_life: timedelta | None = OWN_HALF_LIFE

    def top_k(self, users: Ints, at_ms: int, k: int) -> Ints:
        known = self.history.before(at_ms)
        popularity = np.bincount(known.item, minlength=known.n_items)
        popular = np.argsort(-popularity, kind="stable").astype(np.int32)
        standing = np.empty(known.n_items, np.int64)
        standing[popular] = np.arange(known.n_items)

        user, item, weight = decayed_counts(known, at_ms, self.half_life)
        order = np.lexsort((standing[item], -weight, user))
        bounds = np.searchsorted(user[order], np.arange(known.n_users + 1))
        own = item[order]
        return np.stack([_filled(own[bounds[u] : bounds[u + 1]][:k], popular, k) for u in users])


def decayed_counts(
    known: Interactions, at_ms: int, half_life: timedelta | None
) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """How often each user bought each product: users, items and weights of the distinct pairs, by user."""
    weight = np.ones(len(known)) if half_life is None else half_life_weight(at_ms - known.at_ms, half_life)
    keys, pair = np.unique(known.user.astype(np.int64) * known.n_items + known.item, return_inverse=True)
    total = np.bincount(pair, weight, minlength=len(keys)).astype(np.float64)
    return (keys // known.n_items).astype(np.int32), (keys % known.n_items).astype(np.int32), total


BASELINES: dict[str, Callable[[Interactions], Recommender]] = {
    "popularity": Popularity,
    "recency_popularity": lambda history: Popularity(history, RECENT_HALF_LIFE),
    "own_frequency": OwnFrequency,
}


def _filled(own: Ints, popular: Ints, k: int) -> Ints:
    spare = popular[: k + len(own)]
    return _pad(np.concatenate([own, spare[~np.isin(spare, own)]])[:k], k)


def _pad(items: Ints, k: int) -> Ints:
    return np.pad(items, (0, max(0, k - len(items))), constant_values=PAD).astype(np.int32)
