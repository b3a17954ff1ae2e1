"""What a retrieval model is, and how its scores become lists.

A model learns from a log and scores every item for every user; the lists, their ties and what a user has had already
are the same code for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions
from models.retrieval.selection import best_columns

Float32s = npt.NDArray[np.float32]
SCORES_AT_A_TIME = 16_000_000
"""Users are scored in parts, so that 64 MB of scores exist at any time."""
DECAYS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
"""Of profiles, that are tried."""
ALL_OF_THEM = 1_000
"""The patience of a model whose variants cost little."""


class Scorer(Protocol):
    """A model that has learned."""

    def scores(self, users: Ints) -> Float32s:
        """How much each user wants each item (len(users), n_items); higher is better, all finite."""
        ...


class Model(Protocol):
    """A way to learn from interactions in the order in which they happened."""

    @property
    def patience(self) -> int:
        """After how many variants in a row that are no better the others are left out."""
        ...

    def fit(self, log: Interactions) -> Scorer:
        """Learn; what is not in the log is not known."""
        ...

    def variants(self, log: Interactions) -> "Iterator[tuple[Model, Scorer]]":
        """Learn once, and yield all that comes of it: other ways of asking, or the state after so many epochs."""
        ...


@dataclass(frozen=True)
class Lists:
    """The best items of some users, best first: ``items`` and ``scores``, both (n_users, k), padded with ``PAD``."""

    items: Ints
    scores: Float32s


class Lister:
    """Makes lists of scores: ties go to the more popular item of a log, then to the lower number.

    Parameters
    ----------
    repeats
        Whether an item that the user has had may be in the list.
    """

    def __init__(self, log: Interactions, repeats: bool) -> None:
        self.had = pairs(log)
        self._popular = popular_first(log)
        self._barred = None if repeats else self.had[:, self._popular]

    def best(self, scorer: Scorer, users: Ints, k: int) -> Lists:
        """Each user's k best items."""
        items, scores = np.full((len(users), k), PAD, np.int32), np.full((len(users), k), -np.inf, np.float32)
        step = users_at_a_time(len(self._popular))
        for begin in range(0, len(users), step):
            part = users[begin : begin + step]
            of_all = np.ascontiguousarray(scorer.scores(part)[:, self._popular])
            if self._barred is not None:
                rows, columns = self._barred[part].nonzero()
                of_all[rows, columns] = -np.inf
            places = best_columns(of_all, k)
            items[begin : begin + step] = np.where(places == PAD, PAD, self._popular[places])
            found = np.take_along_axis(of_all, np.maximum(places, 0).astype(np.intp), 1)
            scores[begin : begin + step] = np.where(places == PAD, -np.inf, found)
        return Lists(items, scores)


def best(scorer: Scorer, log: Interactions, users: Ints, k: int, repeats: bool) -> Lists:
    """Each user's k best items, as :class:`Lister` has them."""
    return Lister(log, repeats).best(scorer, users, k)


def users_at_a_time(n_items: int) -> int:
    """Users whose scores of all items are made together."""
    return max(1, SCORES_AT_A_TIME // max(n_items, 1))


def popular_first(log: Interactions) -> Ints:
    """Items by number of interactions (n_items,), most first."""
    return np.argsort(-np.bincount(log.item, minlength=log.n_items), kind="stable").astype(np.int32)


def pairs(log: Interactions) -> sparse.csr_matrix:
    """1 where a user has had an item (n_users, n_items)."""
    ones = np.ones(len(log), np.float32)
    held = sparse.csr_matrix((ones, (log.user, log.item)), (log.n_users, log.n_items))
    held.data[:] = 1  # duplicates were added
    return held


def profiles(log: Interactions, decay: float, most: int | None = None) -> sparse.csr_matrix:
    """What each user is like (n_users, n_items): an item had since n others weighs ``decay ** n``.

    Of each user's items the last ``most`` count, or all.
    """
    order = np.lexsort((-np.arange(len(log)), log.user))  # of each user the newest first
    user, item = log.user[order], log.item[order]
    _, newest = np.unique(user.astype(np.int64) * log.n_items + item, return_index=True)
    newest = np.sort(newest)
    user, item = user[newest], item[newest]
    before = np.arange(len(user)) - np.searchsorted(user, user)
    if most is not None:
        user, item, before = (held[before < most] for held in (user, item, before))
    weights = (decay ** before.astype(np.float64)).astype(np.float32)
    return sparse.csr_matrix((weights, (user, item)), (log.n_users, log.n_items))


def faded(model: Any, log: Interactions) -> Iterator[tuple[Any, Any]]:
    """Variants of a model that is asked with profiles, by their decay."""
    scorer = model.fit(log)
    for decay in DECAYS:
        yield replace(model, decay=decay), replace(scorer, profiles=profiles(log, decay))
