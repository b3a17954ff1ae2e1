"""What was known before each labelled row of its user, its item and the two: the segments, and the rules to beat."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.baselines import OWN_HALF_LIFE
from models.evaluation.metrics import Floats

Instants = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]
HALF_LIFE_MS = OWN_HALF_LIFE.total_seconds() * 1000


@dataclass(frozen=True)
class Past:
    """Purchases strictly before each row's instant; all arrays (n,).

    Attributes
    ----------
    user_count, item_count, pair_count
        How many there were of the user, the item and of the user of the item.
    user_age_ms, item_age_ms
        Since the first of them; -1 where there was none.
    habit
        The pair's purchases, each halved in 90 days (:class:`models.baselines.OwnFrequency`).
    """

    user_count: Instants
    item_count: Instants
    pair_count: Instants
    user_age_ms: Instants
    item_age_ms: Instants
    habit: Floats


def look_back(purchases: pd.DataFrame, user_id: Texts, item_id: Texts, at_ms: Instants) -> Past:
    """Count what lies before each (user, item, instant) (n,).

    Parameters
    ----------
    purchases
        ``user_id, item_id, event_time``; what lies later is not looked at.
    """
    users, items = (pd.Index(purchases[name].unique()) for name in ("user_id", "item_id"))
    user, item = users.get_indexer(user_id), items.get_indexer(item_id)
    his, its = users.get_indexer(purchases["user_id"]), items.get_indexer(purchases["item_id"])
    time = purchases["event_time"].to_numpy(np.int64)
    pairs, pair_of = np.unique(his * len(items) + its, return_inverse=True)
    place = np.minimum(np.searchsorted(pairs, user * len(items) + item), len(pairs) - 1)
    asked = np.where((user >= 0) & (item >= 0) & (pairs[place] == user * len(items) + item), place, -1)
    user_count, user_age, _ = _before(his, time, user, at_ms)
    item_count, item_age, _ = _before(its, time, item, at_ms)
    pair_count, _, habit = _before(pair_of, time, asked, at_ms)
    return Past(user_count, item_count, pair_count, user_age, item_age, habit)


def _before(key: Instants, time: Instants, asked: Instants, at_ms: Instants) -> tuple[Instants, Instants, Floats]:
    """Count, age of the first and halved sum of a key's events before each instant; a key of -1 has none."""
    order = np.lexsort((time, key))
    key, time = key[order].astype(np.int64), time[order]
    origin, span = int(time.min()), int(time.max() - time.min()) + 2
    held = key * span + (time - origin)
    start = np.searchsorted(held, asked * span)
    end = np.searchsorted(held, asked * span + np.clip(at_ms - origin, 0, span - 1))
    known = (asked >= 0) & (end > start)
    count = np.where(known, end - start, 0)
    age = np.where(known, at_ms - time[np.minimum(start, len(time) - 1)], -1)
    grown = np.concatenate([[0.0], np.cumsum(np.exp2((time - origin) / HALF_LIFE_MS))])
    habit = np.where(known, (grown[end] - grown[start]) * np.exp2((origin - at_ms) / HALF_LIFE_MS), 0.0)
    return count, age, habit
