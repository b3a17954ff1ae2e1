"""Shopping trips: what one user bought at one instant, and what they had bought last before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from models.encoder import age_buckets
from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions

Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trips:
    """Ragged rows: trip n holds ``items[bounds[n]:bounds[n + 1]]``.

    Attributes
    ----------
    is_first : (n_purchases,) bool
        Whether the user had never bought that product before.
    recent : (n_trips, n_recent) int32
        Distinct products bought strictly before the trip, newest first, padded with ``PAD``.
    ages : (n_trips, n_recent) uint8
        How long before the trip each was bought last, as :func:`models.encoder.age_buckets` numbers it; 0 where padded.
    """

    user: Ints
    at_ms: Times
    bounds: Times
    items: Ints
    is_first: npt.NDArray[np.bool_]
    recent: Ints
    ages: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Times) -> "Trips":
        """Some trips, in the order of ``rows``."""
        lengths = self.bounds[rows + 1] - self.bounds[rows]
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        lines = np.repeat(self.bounds[rows] - bounds[:-1], lengths) + np.arange(bounds[-1])
        return Trips(
            self.user[rows], self.at_ms[rows], bounds, self.items[lines], self.is_first[lines], self.recent[rows],
            self.ages[rows],
        )  # fmt: skip


def shopping_trips(bought: Interactions, n_recent: int) -> Trips:
    """Group purchases by (time, user) and walk each user's past once."""
    new = np.ones(len(bought), bool)
    new[1:] = (np.diff(bought.at_ms) != 0) | (np.diff(bought.user) != 0)
    starts = np.flatnonzero(new)
    bounds = np.append(starts, len(bought)).astype(np.int64)
    user, at_ms = bought.user[starts], bought.at_ms[starts]
    _, firsts = np.unique(bought.user.astype(np.int64) * bought.n_items + bought.item, return_index=True)
    is_first = np.zeros(len(bought), bool)
    is_first[firsts] = True
    recent = np.full((len(starts), n_recent), PAD, np.int32)
    last_ms = np.zeros((len(starts), n_recent), np.int64)
    walked = _walk(user.tolist(), at_ms.tolist(), bounds.tolist(), bought.item.tolist(), n_recent)
    for trip, (items, times) in enumerate(walked):
        recent[trip, : len(items)], last_ms[trip, : len(times)] = items, times
    ages = age_buckets(np.where(recent == PAD, 0, at_ms[:, None] - last_ms)).astype(np.uint8)
    return Trips(user, at_ms, bounds, bought.item, is_first, recent, ages)


def _walk(
    user: list[int], at_ms: list[int], bounds: list[int], items: list[int], n_recent: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Of each trip, what its user had bought last before, newest first, and when."""
    pasts: dict[int, dict[int, int]] = {}
    for trip, who in enumerate(user):
        past = pasts.setdefault(who, {})
        yield list(islice(reversed(past), n_recent)), list(islice(reversed(past.values()), n_recent))
        for item in sorted(items[bounds[trip] : bounds[trip + 1]], reverse=True):
            past.pop(item, None)
            past[item] = at_ms[trip]


def recent_items(bought: Interactions, users: Ints, at_ms: int, n_recent: int) -> Ints:
    """Each user's last distinct products before ``at_ms``, newest first (len(users), n_recent), padded."""
    return recent_history(bought, users, at_ms, n_recent)[0]


def recent_history(bought: Interactions, users: Ints, at_ms: int, n_recent: int) -> tuple[Ints, Times]:
    """As :func:`recent_items`, and how long before ``at_ms`` each was bought last, 0 where padded."""
    known = bought.before(at_ms)
    order = np.lexsort((known.item, -known.at_ms, known.user))
    bounds = np.searchsorted(known.user[order], np.arange(known.n_users + 1))
    pasts = [order[bounds[user] : bounds[user + 1]] for user in users]
    found = [last_distinct(known.item[past], known.at_ms[past], at_ms, n_recent) for past in pasts]
    if not found:
        return np.full((0, n_recent), PAD, np.int32), np.zeros((0, n_recent), np.int64)
    items, ages = zip(*found, strict=True)
    return np.stack(items), np.stack(ages)


def last_distinct(newest_first: Ints, bought_ms: Times, at_ms: int, n: int) -> tuple[Ints, Times]:
    """First n different products in their order, padded, and how long before ``at_ms`` each was bought last."""
    _, first = np.unique(newest_first, return_index=True)
    places = np.sort(first)[:n]
    missing = (0, n - len(places))
    items = np.pad(newest_first[places], missing, constant_values=PAD).astype(np.int32)
    return items, np.pad(at_ms - bought_ms[places], missing).astype(np.int64)
