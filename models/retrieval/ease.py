"""EASE: every item as a linear mix of all others, in closed form (Steck, WWW 2019)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from headwater.errors import ModelError
from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.retrieval.popularity import below_zero
from models.retrieval.protocol import ALL_OF_THEM, Float32s, faded, pairs, popular_first, profiles

MOST_ITEMS = 20_000
"""Items that are mixed: a matrix of so many by so many is 1.6 GB, and is inverted in its place."""


@dataclass(frozen=True)
class _Scores:
    profiles: sparse.csr_matrix
    mixed: Ints
    weights: Float32s
    spare: Float32s

    def scores(self, users: Ints) -> Float32s:
        """The mix of each user's profile; items beyond the mixed ones come below all others, by popularity."""
        found = np.asarray(self.profiles[users][:, self.mixed] @ self.weights, np.float32)
        if len(self.mixed) == len(self.spare):
            return found
        least = min(float(found.min(initial=0)), 0.0)
        scores = np.repeat((self.spare + np.float32(least))[None], len(users), 0)
        scores[:, self.mixed] = found
        return scores


@dataclass(frozen=True)
class Ease:
    """The model before it has learned.

    Attributes
    ----------
    regularization
        Added to the diagonal of the items' co-occurrences.
    decay
        Weight of an item in a user's profile relative to the one that the user had next.
    """

    regularization: float = 200.0
    decay: float = 0.9
    patience: ClassVar[int] = ALL_OF_THEM

    def fit(self, log: Interactions) -> _Scores:
        """Learn.

        Raises
        ------
        ModelError
            The co-occurrences cannot be inverted, since there is too little regularization.
        """
        mixed = np.arange(log.n_items, dtype=np.int32)
        if log.n_items > MOST_ITEMS:
            mixed = np.sort(popular_first(log)[:MOST_ITEMS])
        had = pairs(log)[:, mixed]
        weights = self._weights((had.T @ had).astype(np.float32).toarray(order="F"))
        return _Scores(profiles(log, self.decay), mixed, weights, below_zero(log))

    def variants(self, log: Interactions) -> Iterator[tuple["Ease", _Scores]]:
        return faded(self, log)

    def _weights(self, gram: Float32s) -> Float32s:
        n = len(gram)
        gram[np.diag_indices(n)] += np.float32(self.regularization)
        factor, failed = lapack.spotrf(gram, lower=0, overwrite_a=1)
        inverse, failed_too = lapack.spotri(factor, lower=0, overwrite_c=1)
        if failed or failed_too:
            raise ModelError(
                f"ease: a regularization of {self.regularization} is too little for these data. Choose more."
            )
        whole = inverse.T  # the same, and one row after another in memory
        for row in range(n):
            whole[row, row + 1 :] = whole[row + 1 :, row]
        whole /= -whole.diagonal().copy()
        whole[np.diag_indices(n)] = 0
        weights: Float32s = whole
        return weights
