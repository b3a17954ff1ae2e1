"""What all that a user ever had tells of the items, in closed form and low rank, without a step.

``X`` (n_users, n_items) being who had what and ``X = U s V'`` its greatest singular values and vectors, EASE (Steck,
WWW 2019) of regularization r scores, but for what a user's own items tell of themselves, P being its inverse::

    P r = I - V diag(share) V'      where share = s^2 / (s^2 + r)
    scores = profile V diag(share) V' / diag(P r)

that is products of a vector of the user and one of the item, each with the root of ``share``.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.utils.extmath import randomized_svd

from models.encoder import UserEncoder
from models.interactions import Interactions
from models.retrieval.protocol import pairs, profiles
from models.trip_log import TripLog
from models.trips import Times
from models.two_tower.batches import DAY_MS

DECAY = 0.99
"""Weight of an item in a user's profile relative to the one that the user had next."""
SPARE, ROUNDS = 16, 7
"""More columns than are kept, and how often they go through the matrix (Halko and others, SIAM Review 2011)."""

LATELY_DAYS, USUALLY_DAYS, PRIOR = 7.0, 120.0, 0.5
"""Half-lives of purchases in what is on the rise, and what is added to both counts."""

BREADTH = 0.5
"""Length of an item's factors in its vector, beside the learned part's one: little, so that likeness is learned."""

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """Vectors whose products score items.

    Attributes
    ----------
    users : (n_users + 1, rank)
        Of length one in the mean over those who had something; row 0, for users never seen, and those of users who had
        nothing are zero.
    items : (n_items, rank)
        The longest has length one.
    """

    users: Float32s
    items: Float32s


def factors_of(past: Interactions, rank: int, scale: Float32s | None = None) -> Factors:
    """Factorise who had what.

    Parameters
    ----------
    past
        Each pair of user and item at least once, in order of time.
    rank
        At most; fewer where there are not so many users or items. The least of the squared singular values is the
        regularization, so that its share is a half.
    scale : (n_items,)
        By which each item's scores are multiplied.
    """
    had = pairs(past).astype(np.float64)
    rank = min(rank, min(had.shape) - 1)
    if rank < 1:
        return Factors(np.zeros((past.n_users + 1, 0), np.float32), np.zeros((past.n_items, 0), np.float32))
    _, singular, right = randomized_svd(had, rank, n_oversamples=SPARE, n_iter=ROUNDS, random_state=0)
    squared = np.square(singular)
    share = squared / (squared + max(float(squared.min()), 1.0))
    left = 1 - np.square(right.T) @ share
    items = right.T * np.sqrt(share)
    users = profiles(past, DECAY).astype(np.float64) @ items
    items /= left[:, None] if scale is None else (left / scale)[:, None]
    longest = max(float(np.linalg.norm(items, axis=1).max()), 1e-12)
    rows = np.pad(users / _mean_length(users), ((1, 0), (0, 0)))
    return Factors(rows.astype(np.float32), (items / longest).astype(np.float32))


def past_of(log: TripLog, n_users: int) -> Interactions:
    """Each user's distinct items when they had them last, in order of time; of the blocks one at a time is read."""
    n_items = len(log.counts)
    pair, at_ms = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for trips in log.blocks:
        sizes = np.diff(trips.bounds)
        bought = np.repeat(trips.user.astype(np.int64), sizes) * n_items + trips.items
        pair, at_ms = _latest(np.concatenate([pair, bought]), np.concatenate([at_ms, np.repeat(trips.at_ms, sizes)]))
    order = np.lexsort((pair, at_ms))
    user, item = np.divmod(pair[order], n_items)
    return Interactions(user.astype(np.int32), item.astype(np.int32), at_ms[order], n_users, n_items)


def with_factors(encoder: UserEncoder, factors: Factors, weight: float) -> UserEncoder:
    """Towers whose products are the learned ones plus ``weight`` times the factors'.

    An item's factors and what they lack to length one make ``BREADTH`` of its vector, so that all have the same length.
    """
    lacking = np.sqrt(np.maximum(1 - np.square(factors.items).sum(1, keepdims=True), 0))
    items = np.concatenate([encoder.items, BREADTH * factors.items, BREADTH * lacking], 1)
    return replace(
        encoder, items=np.asarray(items / np.sqrt(1 + BREADTH**2), np.float32),
        profile=np.asarray(factors.users * (weight / BREADTH), np.float32),
    )  # fmt: skip


def rising(log: TripLog) -> Float32s:
    """How much more than usual each item sells at the log's end (n_items,): fast over slow decayed counts."""
    lately, usually = np.zeros(len(log.counts)), np.zeros(len(log.counts))
    for trips in log.blocks:
        age_days = np.repeat((log.last_ms - trips.at_ms) / DAY_MS, np.diff(trips.bounds))
        for counts, half_life_days in ((lately, LATELY_DAYS), (usually, USUALLY_DAYS)):
            counts += np.bincount(trips.items, np.exp2(-age_days / half_life_days), len(counts))
    return np.asarray((lately + PRIOR) / (usually + PRIOR), np.float32)


def _latest(pair: Times, at_ms: Times) -> tuple[Times, Times]:
    """The distinct pairs, each with its last time."""
    order = np.lexsort((at_ms, pair))
    last = np.append(np.diff(pair[order]) != 0, True)[: len(order)]
    return pair[order][last], at_ms[order][last]


def _mean_length(rows: npt.NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(rows, axis=1)
    return float(lengths[lengths > 0].mean()) if lengths.any() else 1.0
