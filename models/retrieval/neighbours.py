"""Items that the same users had: cosine similarity of items, asked with what a user had lately."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions
from models.retrieval.popularity import below_zero
from models.retrieval.protocol import ALL_OF_THEM, SCORES_AT_A_TIME, Float32s, faded, pairs, profiles
from models.retrieval.selection import best_columns


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
        had = pairs(log)
        of_item = had.T.tocsr()
        roots = np.sqrt(np.asarray(had.sum(0), np.float32).ravel())
        rows = []
        step = max(1, SCORES_AT_A_TIME // max(log.n_items, 1))
        for begin in range(0, log.n_items, step):
            part = np.arange(begin, min(begin + step, log.n_items))
            both = (of_item[part] @ had).toarray().astype(np.float32)
            both[np.arange(len(part)), part] = 0
            similar = both / (roots[part, None] * roots + self.shrink + (both == 0))
            rows.append(_kept(similar, self.neighbours))
        return _Scores(profiles(log, self.decay), sparse.vstack(rows).tocsr(), below_zero(log))

    def variants(self, log: Interactions) -> Iterator[tuple["ItemNeighbours", _Scores]]:
        return faded(self, log)


def _kept(similar: Float32s, n: int) -> sparse.csr_matrix:
    """Each row's n greatest values above zero."""
    columns = best_columns(np.where(similar > 0, similar, -np.inf), n)
    rows, places = np.nonzero(columns != PAD)
    held = columns[rows, places]
    return sparse.csr_matrix((similar[rows, held], (rows, held)), similar.shape)
