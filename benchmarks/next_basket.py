"""Two published methods that predict a user's next baskets from their own past and from users like them.

Both are made of sparse matrices, all users at once; :mod:`benchmarks.cornac_check` holds them to PyPI's ``cornac``.
A basket is what a user bought at one instant, each item once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.retrieval.protocol import Float32s, pairs
from models.trips import shopping_trips

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Mixed:
    """Scores are a mix of users' rows: ``weights`` (n_users, n_users) @ ``rows`` (n_users, n_items)."""

    weights: sparse.csr_matrix
    rows: sparse.csr_matrix

    def scores(self, users: Ints) -> Float32s:
        """Higher is better (len(users), n_items)."""
        return np.asarray((self.weights[users] @ self.rows).toarray(), np.float32)


@dataclass(frozen=True)
class TifuKnn:
    """Decayed frequency of a user's items, mixed with that of the nearest users (Hu and others, SIGIR 2020).

    As the reference code has it, ``within_decay`` counts baskets back from the newest of all, not of the group.

    Attributes
    ----------
    neighbours
        Users by Euclidean distance, the user among them.
    within_decay
        Weight of a basket relative to the next.
    group_decay
        Weight of a group of baskets relative to the next.
    own
        Share of the user's own vector in the score; 1 leaves the neighbours out.
    groups
        Parts of equal size into which the baskets are cut.
    """

    neighbours: int = 300
    within_decay: float = 0.9
    group_decay: float = 0.7
    own: float = 0.7
    groups: int = 7

    def fit(self, log: Interactions) -> _Mixed:
        vectors = self.vectors(log)
        mixed = sparse.eye(log.n_users, format="csr", dtype=np.float32) * np.float32(self.own)
        if self.own < 1:
            nearest = nearest_rows(vectors, min(self.neighbours, log.n_users))
            share = np.full(nearest.size, (1 - self.own) / nearest.shape[1], np.float32)
            rows = np.repeat(np.arange(log.n_users), nearest.shape[1])
            mixed = mixed + sparse.csr_matrix((share, (rows, nearest.ravel())), mixed.shape)
        return _Mixed(mixed, vectors)

    def vectors(self, log: Interactions) -> sparse.csr_matrix:
        """Each user's decayed item frequencies (n_users, n_items)."""
        baskets, user, age = _baskets(log)
        of_user = np.bincount(user, minlength=log.n_users)[user]
        group, size = _group(of_user - 1 - age, of_user, self.groups)
        groups = np.minimum(of_user, self.groups)
        weight = self.within_decay**age * self.group_decay ** (self.groups - 1.0 - group) / (size * groups)
        return _sum_by_user(baskets, user, weight, log.n_users)


@dataclass(frozen=True)
class UpCf:
    """Popularity of items in each user's latest baskets, over users with alike items (Faggioli and others, UMAP 2020).

    Attributes
    ----------
    recency
        So many of a user's latest baskets count; 0 takes all.
    locality
        Power of the similarity: the higher, the fewer users count.
    asymmetry
        Weight of the asked user's number of items in the cosine; the other's has the rest.
    counted
        Compare with how often others had an item, and count the asked user once more, as ``cornac`` does; the paper
        compares sets.
    """

    recency: int = 25
    locality: float = 10.0
    asymmetry: float = 0.25
    counted: bool = False

    def fit(self, log: Interactions) -> _Mixed:
        alike = similar_users(pairs(log), _counts(log) if self.counted else pairs(log), self.asymmetry) ** self.locality
        if self.counted:
            alike[np.diag_indices(log.n_users)] += 1
        return _Mixed(sparse.csr_matrix(alike.astype(np.float32)), self.popularity(log))

    def popularity(self, log: Interactions) -> sparse.csr_matrix:
        """Share of each user's latest baskets that hold an item (n_users, n_items)."""
        baskets, user, age = _baskets(log)
        counted = np.bincount(user, minlength=log.n_users)[user]
        if self.recency:
            counted = np.minimum(counted, self.recency)
        return _sum_by_user(baskets, user, np.where(age < counted, 1.0 / counted, 0.0), log.n_users)


def nearest_rows(vectors: sparse.csr_matrix, k: int) -> Ints:
    """The k nearest rows of each row by Euclidean distance, itself included (n, k), in no order."""
    square = np.asarray(vectors.multiply(vectors).sum(1), np.float64).ravel()
    distance = square[None] - 2 * (vectors @ vectors.T).toarray()  # less the row's own square, the same for all
    return np.argpartition(distance, k - 1, axis=1)[:, :k].astype(np.int32)


def similar_users(asked: sparse.csr_matrix, others: sparse.csr_matrix, asymmetry: float) -> Float64s:
    """Asymmetric cosine of rows: ``u.v / ((u.u) ** a * (v.v) ** (1 - a))`` (n_asked, n_others), 0 for empty rows."""
    of_asked, of_others = (np.asarray(rows.multiply(rows).sum(1), np.float64).ravel() for rows in (asked, others))
    norms = of_asked[:, None] ** asymmetry * of_others[None] ** (1 - asymmetry)
    both = (asked @ others.T).toarray().astype(np.float64)
    return np.divide(both, norms, out=np.zeros_like(both), where=both > 0)


def _counts(log: Interactions) -> sparse.csr_matrix:
    """In how many baskets each user had each item (n_users, n_items)."""
    baskets, user, _ = _baskets(log)
    return _sum_by_user(baskets, user, np.ones(len(user)), log.n_users)


def _baskets(log: Interactions) -> tuple[sparse.csr_matrix, Ints, Float64s]:
    """Items of each basket as ones (n_baskets, n_items), whose it is, and how many of that user's came after it."""
    trips = shopping_trips(log, 0)
    row = np.repeat(np.arange(len(trips)), np.diff(trips.bounds))
    held = sparse.csr_matrix((np.ones(len(row), np.float32), (row, trips.items)), (len(trips), log.n_items))
    held.data[:] = 1  # duplicates were added
    order = np.lexsort((-np.arange(len(trips)), trips.user))  # of each user the newest first
    age = np.empty(len(trips))
    age[order] = np.arange(len(trips)) - np.searchsorted(trips.user[order], trips.user[order])
    return held, trips.user, age


def _group(place: Float64s, count: npt.NDArray[np.int64], groups: int) -> tuple[Float64s, Float64s]:
    """Group of each basket, from its place among the user's ``count``, and the group's size: the later are the larger.

    With fewer baskets than groups, each is one.
    """
    small, larger = count // groups, count % groups
    in_small = small * (groups - larger)
    later = groups - larger + np.floor((place - in_small) / (small + 1))
    is_small = place < in_small
    group = np.where(is_small, np.floor(place / np.maximum(small, 1)), later)
    few = count < groups
    return np.where(few, place, group), np.where(few, 1.0, np.where(is_small, small, small + 1))


def _sum_by_user(baskets: sparse.csr_matrix, user: Ints, weight: Float64s, n_users: int) -> sparse.csr_matrix:
    by_user = sparse.csr_matrix((weight, (user, np.arange(len(user)))), (n_users, len(user)))
    summed = (by_user @ baskets).tocsr().astype(np.float32)
    summed.eliminate_zeros()
    return summed
