"""What everyone buys, and what is on the rise, as of the last midnight: the sources that know no user."""

import numpy as np
import numpy.typing as npt

from headwater.plan import DAY_MS
from models.interactions import Interactions

POPULAR_DAYS = 30
RISING_DAYS = 7

Float32s = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def popularity(bought: Interactions, at_ms: int) -> Float32s:
    """Purchases of each product in the 30 days before the midnight (UTC) at or before ``at_ms``, float32 (n_items,)."""
    return _counts(bought, _midnight(at_ms), POPULAR_DAYS)


def trending(bought: Interactions, at_ms: int) -> Float32s:
    """How far the last week's purchases exceed what the three weeks before it promised, float32 (n_items,).

    In standard deviations of a Poisson count of that expectation; one is added to it, for products hardly ever bought.
    """
    midnight = _midnight(at_ms)
    week = _counts(bought, midnight, RISING_DAYS)
    before = _counts(bought, midnight, POPULAR_DAYS) - week
    expected = before * (RISING_DAYS / (POPULAR_DAYS - RISING_DAYS))
    return np.asarray((week - expected) / np.sqrt(expected + 1), np.float32)


def best_first(scores: Float32s) -> Ints:
    """Items with a score above zero (n_items,), best first, ties to the lower number."""
    order = np.argsort(-scores, kind="stable").astype(np.int32)
    return np.asarray(order[scores[order] > 0])


def _midnight(at_ms: int) -> int:
    return at_ms // DAY_MS * DAY_MS


def _counts(bought: Interactions, end_ms: int, days: int) -> Float32s:
    window = bought.between(end_ms - days * DAY_MS, end_ms)
    return np.bincount(window.item, minlength=bought.n_items).astype(np.float32)
