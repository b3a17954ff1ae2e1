"""Popular and rising, against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.interactions import Interactions
from models.trends import DAY_MS, popularity, trending

N_ITEMS = 4
NOW_DAY = 40

lines = st.lists(st.tuples(st.integers(0, 45 * 24), st.integers(0, N_ITEMS - 1)), max_size=40)


def history(lines) -> Interactions:
    at, item = (np.array([line[n] for line in sorted(lines)], np.int64) for n in range(2))
    return Interactions(np.zeros(len(at), np.int32), item.astype(np.int32), at * (DAY_MS // 24), 1, N_ITEMS)


@given(lines, st.integers(0, 23))
def test_counts_end_at_midnight(lines, hour):
    """Nothing of the day itself counts, so that one table a day serves everyone."""
    bought, now = history(lines), NOW_DAY * DAY_MS + hour * (DAY_MS // 24)
    popular, rising = popularity(bought, now), trending(bought, now)
    for item in range(N_ITEMS):
        days = [at // 24 for at, bought_item in lines if bought_item == item]
        month = sum(NOW_DAY - 30 <= day < NOW_DAY for day in days)
        week = sum(NOW_DAY - 7 <= day < NOW_DAY for day in days)
        expected = (month - week) * 7 / 23
        assert popular[item] == month
        assert rising[item] == pytest.approx((week - expected) / (expected + 1) ** 0.5, abs=1e-6)


def test_a_steady_seller_does_not_rise_and_a_newcomer_does():
    steady = [(day * 24, 0) for day in range(5, 40) for _ in range(10)]
    newcomer = [(day * 24, 1) for day in range(36, 40) for _ in range(3)]
    bought = history([*steady, *newcomer])
    assert np.argmax(popularity(bought, NOW_DAY * DAY_MS)) == 0
    assert np.argmax(trending(bought, NOW_DAY * DAY_MS)) == 1
    assert abs(trending(bought, NOW_DAY * DAY_MS)[0]) < 0.5
