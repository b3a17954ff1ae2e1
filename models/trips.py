"""Shopping trips: what one user bought at one instant, and what they had bought last before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions


@dataclass(frozen=True)
class Trips:
    """Ragged rows in order of (time, user): trip n holds ``items[bounds[n]:bounds[n + 1]]``.

    Attributes
    ----------
    is_first : (n_purchases,) bool
        Whether the user had never bought that product before.
    recent : (n_trips, n_recent) int32
        Distinct products bought strictly before the trip, newest first, padded with ``PAD``.
    """

    user: Ints
    at_ms: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    items: Ints
    is_first: npt.NDArray[np.bool_]
    recent: Ints

    def __len__(self) -> int:
        return len(self.user)


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
    for trip, past in _walk(user.tolist(), bounds.tolist(), bought.item.tolist(), n_recent):
        recent[trip, : len(past)] = past
    return Trips(user, at_ms, bounds, bought.item, is_first, recent)


def _walk(user: list[int], bounds: list[int], items: list[int], n_recent: int) -> Iterator[tuple[int, list[int]]]:
    pasts: dict[int, dict[int, None]] = {}
    for trip, who in enumerate(user):
        past = pasts.setdefault(who, {})
        yield trip, list(islice(reversed(past), n_recent))
        for item in sorted(items[bounds[trip] : bounds[trip + 1]], reverse=True):
            past.pop(item, None)
            past[item] = None


def recent_items(bought: Interactions, users: Ints, at_ms: int, n_recent: int) -> Ints:
    """Each user's last distinct products before ``at_ms``, newest first (len(users), n_recent), padded."""
    known = bought.before(at_ms)
    order = np.lexsort((known.item, -known.at_ms, known.user))
    bounds = np.searchsorted(known.user[order], np.arange(known.n_users + 1))
    rows = [distinct(known.item[order[bounds[u] : bounds[u + 1]]], n_recent) for u in users]
    return np.stack(rows) if rows else np.full((0, n_recent), PAD, np.int32)


def distinct(newest_first: Ints, n: int) -> Ints:
    """First n different values in their order, padded."""
    _, first = np.unique(newest_first, return_index=True)
    kept = newest_first[np.sort(first)[:n]]
    return np.pad(kept, (0, n - len(kept)), constant_values=PAD).astype(np.int32)
