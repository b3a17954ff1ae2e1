"""What lists show, against loops over pairs and items."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.exposure import diversity, gini, novelty, popularity_shown
from models.evaluation.metrics import PAD

N_ITEMS, N_USERS = 7, 9
lists = st.lists(st.lists(st.integers(PAD, N_ITEMS - 1), min_size=3, max_size=3), min_size=1, max_size=6)
buyers = st.lists(st.integers(0, N_USERS), min_size=N_ITEMS, max_size=N_ITEMS)


def same(found, told):
    assert found == pytest.approx(told, nan_ok=True)


@given(lists, buyers)
def test_novelty_and_popularity_are_means_over_what_is_shown(shown, had):
    flat = [item for row in shown for item in row if item != PAD]
    surprise = [-math.log2((had[item] + 1) / (N_USERS + 1)) for item in flat]
    same(novelty(np.array(shown), np.array(had), N_USERS), sum(surprise) / len(flat) if flat else math.nan)
    drawn = [item for item in range(N_ITEMS) for _ in range(had[item])]
    usual = sum(had[item] for item in drawn) / len(drawn) if drawn else math.nan
    told = sum(had[item] for item in flat) / len(flat) / usual if flat and drawn else math.nan
    same(popularity_shown(np.array(shown), np.array(had)), told)


@given(lists)
def test_gini_is_half_the_mean_difference_over_the_mean(shown):
    times = [sum(row.count(item) for row in shown) for item in range(N_ITEMS)]
    mean = sum(times) / N_ITEMS
    apart = sum(abs(a - b) for a in times for b in times) / N_ITEMS**2
    same(gini(np.array(shown), N_ITEMS), apart / (2 * mean) if mean else math.nan)


@given(lists, st.lists(st.integers(0, 2), min_size=N_ITEMS, max_size=N_ITEMS))
def test_diversity_is_the_share_of_pairs_of_two_kinds(shown, kinds):
    found = diversity(np.array(shown), np.array(kinds))
    for row, value in zip(shown, found, strict=True):
        pairs = list(combinations([kinds[item] for item in row if item != PAD], 2))
        same(value, sum(a != b for a, b in pairs) / len(pairs) if pairs else math.nan)
