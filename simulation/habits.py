"""How often each shopper bought each product, as one sorted array of pairs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulation.fitted import Floats, Ints


@dataclass(frozen=True)
class Habits:
    """Pairs in order of (user, item): ``keys`` (n_pairs,) are ``user * n_items + item``, ``counts`` (n_pairs,)."""

    keys: npt.NDArray[np.int64]
    counts: Floats
    n_items: int

    @classmethod
    def of(cls, own: Any, n_items: int) -> "Habits":
        """From a sparse matrix (n_users, at most ``n_items``)."""
        pairs = own.tocoo()
        keys = pairs.row.astype(np.int64) * n_items + pairs.col
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], pairs.data[order].astype(np.float64), n_items)

    def count(self, users: Ints, items: Ints) -> Floats:
        """Purchases of pairs, of any shape that the two broadcast to."""
        wanted = users.astype(np.int64) * self.n_items + items
        if not len(self.keys):
            return np.zeros(wanted.shape)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.counts[at], 0.0)

    def rows(self, users: Ints) -> tuple[npt.NDArray[np.int64], Ints, Floats]:
        """All pairs of some users: place in ``users``, item, count; each (n,)."""
        first = users.astype(np.int64) * self.n_items
        low, high = np.searchsorted(self.keys, first), np.searchsorted(self.keys, first + self.n_items)
        sizes = high - low
        at = np.repeat(low - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        return np.repeat(np.arange(len(users)), sizes), (self.keys[at] % self.n_items).astype(np.int32), self.counts[at]
