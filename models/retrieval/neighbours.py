"""Items that the same users had: cosine similarity of items, asked with what a user had lately."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions
from models.neighbour_table import WIDTH, NeighbourTable
from models.retrieval.popularity import below_zero
from models.retrieval.protocol import ALL_OF_THEM, Float32s, faded, pairs, profiles

ITEMS_AT_A_TIME = 256
LATELY = 100
"""Distinct items of each user that the table is made of."""


@dataclass(frozen=True)
class _Scores:
    profiles: sparse.csr_matrix
    similar: sparse.csr_matrix
    spare: Float32s

    def scores(self, users: Ints) -> Float32s:
        """Similarity to the profile; items that resemble nothing in it come below all others, by popularity."""
        found: Float32s = (self.profiles[users] @ self.similar).toarray().astype(np.float32)
        return np.where(found > 0, found, self.spare)


@dataclass(frozen=True)
class ItemNeighbours:
    """Item-to-item (Sarwar and others, WWW 2001), shrunk where few users tell, with a profile that fades.

    Attributes
    ----------
    shrink
        Users added to the geometric mean of two items' users.
    decay
        Weight of an item relative to the one that the user had next.
    """

    neighbours: int = 200
    shrink: float = 10.0
    decay: float = 0.8
    patience: ClassVar[int] = ALL_OF_THEM

    def fit(self, log: Interactions) -> _Scores:
        return _Scores(profiles(log, self.decay), self.similar(pairs(log)), below_zero(log))

    def similar(self, had: sparse.csr_matrix) -> sparse.csr_matrix:
        """Each item's neighbours (n_items, n_items) from 1 where a user had an item (n_users, n_items)."""
        of_item = had.T.tocsr()
        roots = np.sqrt(np.asarray(had.sum(0), np.float32).ravel())
        rows = []
        for begin in range(0, had.shape[1], ITEMS_AT_A_TIME):
            both = (of_item[begin : begin + ITEMS_AT_A_TIME] @ had).tocsr()
            item = begin + np.repeat(np.arange(both.shape[0]), np.diff(both.indptr))
            both.data /= roots[item] * roots[both.indices] + np.float32(self.shrink)
            both.data[item == both.indices] = 0
            rows.append(_kept(both, self.neighbours))
        return sparse.vstack(rows).tocsr() if rows else sparse.csr_matrix((0, 0), dtype=np.float32)

    def variants(self, log: Interactions) -> Iterator[tuple["ItemNeighbours", _Scores]]:
        return faded(self, log)


def neighbour_table(log: Interactions, width: int = WIDTH, most: int = LATELY) -> NeighbourTable:
    """What :class:`ItemNeighbours` finds among each user's last items, as a table of so many neighbours of each item.

    Pairs grow with the square of what a user had, so ``most`` bounds the work. Users without a number tell nothing.
    """
    known = log.user >= 0
    log = Interactions(log.user[known], log.item[known], log.at_ms[known], log.n_users, log.n_items)
    similar = ItemNeighbours(neighbours=width).similar(profiles(log, 1.0, most))
    items = np.full((log.n_items, width), PAD, np.int32)
    scores = np.zeros((log.n_items, width), np.float32)
    row = np.repeat(np.arange(log.n_items), np.diff(similar.indptr))
    order = np.lexsort((similar.indices, -similar.data, row))
    place = np.arange(len(order)) - similar.indptr[row]
    items[row, place], scores[row, place] = similar.indices[order], similar.data[order]
    return NeighbourTable(items, scores)


def _kept(similar: sparse.csr_matrix, n: int) -> sparse.csr_matrix:
    """Each row's n greatest values above zero, of equal ones those of lower columns."""
    similar.sort_indices()
    row = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
    order = np.lexsort((similar.indices, -similar.data, row))
    place = np.arange(len(order)) - similar.indptr[row[order]]
    order = order[(place < n) & (similar.data[order] > 0)]
    return sparse.csr_matrix((similar.data[order], (row[order], similar.indices[order])), similar.shape)
