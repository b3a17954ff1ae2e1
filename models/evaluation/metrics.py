"""Ranking metrics over the full catalogue, one value per user, so that any two methods can be compared pairwise.

Every metric takes ``hits`` (n_users, n_positions), True where the product at that position is relevant, and
``sizes`` (n_users,), how many products are relevant; it returns float64 (n_users,), NaN for a user with none.
A product named twice in a list counts at its first position only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Metric = Callable[[Bools, Ints, int], Floats]

PAD = -1  # fills a list that is shorter than asked for


@dataclass(frozen=True)
class Relevance:
    """What each user turned out to want: ``keys`` are sorted, unique ``user * n_items + item``."""

    keys: npt.NDArray[np.int64]
    n_users: int
    n_items: int

    @classmethod
    def from_pairs(cls, users: npt.ArrayLike, items: npt.ArrayLike, n_users: int, n_items: int) -> "Relevance":
        """Collect the distinct (user, item) pairs."""
        keys = np.asarray(users, np.int64) * n_items + np.asarray(items, np.int64)
        return cls(np.unique(keys), n_users, n_items)

    @property
    def sizes(self) -> Ints:
        """Relevant products of each user (n_users,)."""
        return np.bincount(self.keys // self.n_items, minlength=self.n_users).astype(np.int32)

    @property
    def users(self) -> Ints:
        """Users with at least one relevant product, ascending."""
        return np.flatnonzero(self.sizes).astype(np.int32)

    def hits(self, users: Ints, lists: Ints) -> Bools:
        """Mark the relevant positions: ``lists`` (len(users), n_positions), padded with ``PAD``."""
        keys = users[:, None].astype(np.int64) * self.n_items + lists
        found = np.isin(keys, self.keys) & (lists != PAD)
        return np.asarray(found & _first_occurrence(lists))

    def split(self, known: "Relevance") -> tuple["Relevance", "Relevance"]:
        """Split into pairs that are in ``known`` (repeats) and pairs that are not (first purchases)."""
        seen = np.isin(self.keys, known.keys, assume_unique=True)
        return (
            Relevance(self.keys[seen], self.n_users, self.n_items),
            Relevance(self.keys[~seen], self.n_users, self.n_items),
        )


def recall(hits: Bools, sizes: Ints, k: int) -> Floats:
    """Share of the relevant products that the first k positions hold."""
    return _over(hits[:, :k].sum(1), sizes)


def ndcg(hits: Bools, sizes: Ints, k: int) -> Floats:
    """Discounted gain of the first k positions over that of the best possible list (Järvelin & Kekäläinen 2002)."""
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    gained = hits[:, :k] @ discounts[: hits.shape[1]]
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    return _over(gained, ideal[np.minimum(sizes, k)])


def hit_rate(hits: Bools, sizes: Ints, k: int) -> Floats:
    """1 where any of the first k positions is relevant, else 0."""
    return _over(hits[:, :k].any(1), np.minimum(sizes, 1))


def mrr(hits: Bools, sizes: Ints, k: int) -> Floats:
    """One over the first relevant position, 0 where none of the first k is."""
    top = hits[:, :k]
    first = np.where(top.any(1), 1.0 / (top.argmax(1) + 1), 0.0)
    return _over(first, np.minimum(sizes, 1))


def average_precision(hits: Bools, sizes: Ints, k: int) -> Floats:
    """Precision at each relevant position, summed, over the most that k positions could hold."""
    top = hits[:, :k]
    precision = np.cumsum(top, 1) / np.arange(1, top.shape[1] + 1)
    return _over((precision * top).sum(1), np.minimum(sizes, k))


METRICS: dict[str, Metric] = {
    "recall": recall,
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "mrr": mrr,
    "map": average_precision,
}


def coverage(lists: Ints, n_items: int, k: int) -> float:
    """Share of the catalogue that appears in anyone's first k."""
    shown = np.unique(lists[:, :k])
    return int((shown != PAD).sum()) / n_items


def mean(per_user: Floats) -> float:
    """Mean over the users that have something to find; NaN if none has."""
    counted = per_user[~np.isnan(per_user)]
    return float(counted.mean()) if len(counted) else float("nan")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference with its confidence bounds."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_bootstrap(a: Floats, b: Floats, seed: int, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Percentile interval of ``mean(a - b)``, resampling users (Efron & Tibshirani 1993, ch. 13).

    Users for whom either side is NaN are left out, on both sides.
    """
    difference = (a - b)[~np.isnan(a - b)]
    generator = np.random.default_rng(seed)
    means = np.array(
        [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(resamples)]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(difference.mean()), float(low), float(high))


def top_k(scores: npt.NDArray[np.floating[Any]], k: int) -> Ints:
    """Columns of the k best scores a row, best first; ties go to the lower column, -inf is never taken.

    Parameters
    ----------
    scores : (n_rows, n_columns)

    Returns
    -------
    (n_rows, k), padded with ``PAD``.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    taken = np.where(np.isneginf(np.take_along_axis(scores, order, 1)), PAD, order)
    missing = max(0, k - taken.shape[1])
    return np.pad(taken, ((0, 0), (0, missing)), constant_values=PAD).astype(np.int32)


def top_k_grouped(groups: Ints, items: Ints, scores: npt.NDArray[np.floating[Any]], n_groups: int, k: int) -> Ints:
    """As ``top_k`` for scored pairs in long form: the best k items of each group; ties go to the lower item."""
    order = np.lexsort((items, -scores, groups))
    counts = np.bincount(groups, minlength=n_groups)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank < k]
    lists = np.full((n_groups, k), PAD, np.int32)
    lists[groups[kept], rank[rank < k]] = items[kept]
    return lists


def _over(value: npt.ArrayLike, size: npt.ArrayLike) -> Floats:
    value, size = np.asarray(value, np.float64), np.asarray(size, np.float64)
    return np.asarray(np.divide(value, size, out=np.full(len(size), np.nan), where=size > 0))


def _first_occurrence(lists: Ints) -> Bools:
    order = np.argsort(lists, axis=1, kind="stable")
    ordered = np.take_along_axis(lists, order, 1)
    fresh = np.ones(lists.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(fresh)
    np.put_along_axis(first, order, fresh, 1)
    return first
