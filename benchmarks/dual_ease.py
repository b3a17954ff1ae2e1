"""EASE of a catalogue that has many more items than users, over all of its items.

The items' matrix that :mod:`models.retrieval.ease` inverts has the rank of the users, so the same weights follow from
one of users by users (Woodbury's identity), ``X`` (n_users, n_items) being who had what::

    P = (X'X + rI)^-1 = (I - X'KX) / r      where K = (XX' + rI)^-1
    scores = S - SP / diag(P)               where S are the profiles
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.retrieval.protocol import Float32s, pairs, profiles

ITEMS_AT_A_TIME = 4_096


@dataclass(frozen=True)
class _Scores:
    """``inverse`` is K, and ``left`` the diagonal of rP."""

    profiles: sparse.csr_matrix
    had: sparse.csr_matrix
    inverse: npt.NDArray[np.float64]
    left: npt.NDArray[np.float64]

    def scores(self, users: Ints) -> Float32s:
        """The mix of each user's profile (len(users), n_items)."""
        of_users = self.profiles[users]
        through = np.asarray((of_users @ self.had.T) @ self.inverse)  # (len(users), n_users)
        whole = of_users.toarray()
        return np.asarray(whole - (whole - self.had.T.dot(through.T).T) / self.left, np.float32)


@dataclass(frozen=True)
class DualEase:
    """As :class:`models.retrieval.ease.Ease`, which explains the attributes."""

    regularization: float = 200.0
    decay: float = 0.9

    def fit(self, log: Interactions) -> _Scores:
        had = pairs(log).astype(np.float64)
        gram = (had @ had.T).toarray()
        gram[np.diag_indices(len(gram))] += self.regularization
        inverse = cho_solve(cho_factor(gram), np.eye(len(gram)))
        columns, left = had.tocsc(), np.empty(log.n_items)
        for begin in range(0, log.n_items, ITEMS_AT_A_TIME):
            part = columns[:, begin : begin + ITEMS_AT_A_TIME]
            mixed = part.T.dot(inverse).T  # (n_users, n_part)
            left[begin : begin + part.shape[1]] = 1 - np.asarray(part.multiply(mixed).sum(0)).ravel()
        return _Scores(profiles(log, self.decay).astype(np.float64), had, inverse, left)
