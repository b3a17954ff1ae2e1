"""What every maker of lists must hold, whatever it is made of."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.baselines import BASELINES, OwnFrequency, Popularity
from models.evaluation.metrics import PAD
from models.interactions import Interactions

N_USERS, N_ITEMS, NOW = 4, 9, 1_000


@st.composite
def histories(draw):
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 2 * NOW), st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), max_size=30
        )
    )
    at, user, item = (np.array([row[n] for row in sorted(rows)], int) for n in range(3))
    return Interactions(user.astype(np.int32), item.astype(np.int32), at.astype(np.int64), N_USERS, N_ITEMS)


everyone = np.arange(N_USERS, dtype=np.int32)
makers = pytest.mark.parametrize("name", BASELINES)
sizes = st.integers(1, N_ITEMS + 3)


@makers
@given(history=histories(), k=sizes)
@settings(max_examples=30)
def test_a_list_has_k_places_and_names_each_product_once(name, history, k):
    lists = BASELINES[name](history).top_k(everyone, NOW, k)
    assert lists.shape == (N_USERS, k)
    assert lists.dtype == np.int32
    for row in lists:
        named = row[row != PAD]
        assert len(set(named.tolist())) == len(named) == min(k, N_ITEMS)
        assert (row[len(named) :] == PAD).all()


@makers
@given(history=histories(), k=sizes)
@settings(max_examples=30)
def test_the_future_changes_nothing(name, history, k):
    """An event at exactly t is not known at t."""
    with_future = BASELINES[name](history).top_k(everyone, NOW, k)
    without = BASELINES[name](history.before(NOW)).top_k(everyone, NOW, k)
    assert np.array_equal(with_future, without)


@makers
@given(history=histories(), k=sizes, users=st.lists(st.integers(0, N_USERS - 1), max_size=5))
@settings(max_examples=30)
def test_each_user_is_answered_alone(name, history, k, users):
    maker = BASELINES[name](history)
    assert np.array_equal(
        maker.top_k(np.array(users, np.int32), NOW, k) if users else everyone[:0],
        maker.top_k(everyone, NOW, k)[users] if users else everyone[:0],
    )


def test_own_frequency_prefers_what_was_bought_more_often_and_later():
    user, item = np.zeros(4, np.int32), np.array([5, 5, 2, 7], np.int32)
    history = Interactions(user, item, np.array([10, 20, 30, 40], np.int64), 1, N_ITEMS)
    assert OwnFrequency(history, timedelta(days=1)).top_k(user[:1], 50, 4)[0].tolist() == [5, 7, 2, 0]
    assert OwnFrequency(history, timedelta(milliseconds=5)).top_k(user[:1], 50, 3)[0].tolist() == [7, 2, 5]


def test_own_frequency_breaks_ties_by_popularity():
    user, item = np.array([0, 0, 1, 1], np.int32), np.array([3, 4, 4, 8], np.int32)
    history = Interactions(user, item, np.full(4, 10, np.int64), 2, N_ITEMS)
    assert OwnFrequency(history).top_k(user[:1], 50, 3)[0].tolist() == [4, 3, 8]


def test_decayed_popularity_forgets():
    item = np.array([1, 1, 1, 2], np.int32)
    history = Interactions(np.zeros(4, np.int32), item, np.array([0, 1, 2, 900], np.int64), 1, N_ITEMS)
    assert Popularity(history).top_k(item[:1] * 0, NOW, 1)[0, 0] == 1
    assert Popularity(history, timedelta(milliseconds=50)).top_k(item[:1] * 0, NOW, 1)[0, 0] == 2
