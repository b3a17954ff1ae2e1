"""What is factorised beside the towers, against EASE with all its matrices written out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.camps import in_blocks, two_camps

from models.encoder import UserEncoder
from models.interactions import Interactions
from models.trip_log import in_memory
from models.trips import recent_items
from models.two_tower import TowerConfig, Trainer
from models.two_tower.factors import DECAY, factors_of, past_of, rising, with_factors

SMALL = TowerConfig(dim=16, hidden=16, n_recent=4, trips_per_batch=32, negatives=40, passes=2, least_steps=0, seed=3)
BOTH = replace(SMALL, factors=5)
N_USERS, N_ITEMS = 9, 12


def distinct(pairs: list[tuple[int, int]]) -> Interactions:
    user, item = np.array(list(dict.fromkeys(pairs)), np.int32).T
    return Interactions(user, item, np.arange(len(user), dtype=np.int64), N_USERS, N_ITEMS)


def written_out(past: Interactions, rank: int) -> np.ndarray:
    """Scores (n_users, n_items) of EASE on the best approximation of that rank, all of it dense."""
    had, profiles = np.zeros((2, past.n_users, past.n_items))
    had[past.user, past.item] = 1
    for user in range(past.n_users):
        own = past.item[past.user == user][::-1]
        profiles[user, own] = DECAY ** np.arange(len(own))
    left, singular, right = np.linalg.svd(had, full_matrices=False)
    kept = (left[:, :rank] * singular[:rank]) @ right[:rank]
    regularization = max(singular[rank - 1] ** 2, 1.0)
    inverse = regularization * np.linalg.inv(kept.T @ kept + regularization * np.eye(past.n_items))
    return profiles @ (np.eye(past.n_items) - inverse) / np.diag(inverse)


@given(st.lists(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), min_size=40, max_size=120))
@settings(max_examples=50, deadline=None)
def test_factors_score_as_ease_of_their_rank_does(pairs):
    past, rank = distinct(pairs), 4
    had = np.zeros((N_USERS, N_ITEMS))
    had[past.user, past.item] = 1
    singular = np.linalg.svd(had, compute_uv=False)
    if singular[rank - 1] - singular[rank] < 1e-3:  # which vectors are kept is open
        return
    found = factors_of(past, rank)
    scores, expected = found.users[1:] @ found.items.T, written_out(past, rank)
    scale = (scores * expected).sum() / np.square(expected).sum()
    assert scale > 0
    assert np.allclose(scores, scale * expected, atol=1e-4 * np.abs(scores).max())


def test_there_are_no_more_factors_than_users_or_items_allow():
    one = Interactions(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int64), 1, 5)
    assert factors_of(one, 64).items.shape == (5, 0)
    few = distinct([(user, item) for user in range(3) for item in range(user, 5)])
    assert factors_of(few, 64).users.shape == (N_USERS + 1, N_USERS - 1)
    assert not factors_of(few, 64).users[0].any()


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_the_past_is_each_product_when_it_was_had_last_however_the_log_lies(n_blocks):
    data = two_camps()
    found = past_of(in_blocks(data, 4, n_blocks).log, data.bought.n_users)
    last = {
        (int(user), int(item)): int(at)
        for user, item, at in zip(data.bought.user, data.bought.item, data.bought.at_ms, strict=True)
    }
    in_order = sorted((at, user, item) for (user, item), at in last.items())
    assert list(zip(found.at_ms.tolist(), found.user.tolist(), found.item.tolist(), strict=True)) == in_order


def test_products_are_the_learned_ones_and_the_factors_by_their_weight():
    data = two_camps()
    learned = Trainer(data, SMALL, "cpu").fit().export()
    factors = factors_of(past_of(in_memory(data, 4).log, data.bought.n_users), 5)
    both = with_factors(learned, factors, 2.0)
    everyone = np.arange(-1, data.bought.n_users, dtype=np.int32)
    recent = recent_items(data.bought, np.maximum(everyone, 0), 10**12, 4)
    expected = learned.encode(everyone, recent) @ learned.items.T + 2 * factors.users @ factors.items.T
    scores = both.encode(everyone, recent) @ both.items.T
    ratio = (scores * expected).sum(1, keepdims=True) / np.square(expected).sum(1, keepdims=True)
    assert (ratio > 0).all()
    assert np.allclose(scores, ratio * expected, atol=1e-5)
    for vectors in (both.items, both.encode(everyone, recent)):
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = UserEncoder.from_arrays(both.items, both.arrays())
    assert np.array_equal(again.encode(everyone, recent), both.encode(everyone, recent))


def test_a_training_exports_them_alike_from_memory_and_from_blocks():
    data = two_camps()
    whole, dealt = (Trainer(corpus, BOTH, "cpu").export() for corpus in (in_memory(data, 4), in_blocks(data, 4, 3)))
    assert whole.profile is not None
    assert dealt.profile is not None
    assert np.array_equal(whole.profile, dealt.profile)
    assert np.array_equal(whole.items[:, SMALL.dim :], dealt.items[:, SMALL.dim :])


def test_what_sells_more_than_usual_counts_more():
    log = in_blocks(two_camps(), 4, 3).log
    (trips,) = in_memory(two_camps(), 4).log.blocks
    expected = []
    for item in range(len(log.counts)):
        ages = [
            (log.last_ms - int(trips.at_ms[trip])) / 86_400_000
            for trip in range(len(trips))
            for held in trips.items[trips.bounds[trip] : trips.bounds[trip + 1]]
            if held == item
        ]
        expected.append((sum(2 ** (-age / 7) for age in ages) + 0.5) / (sum(2 ** (-age / 120) for age in ages) + 0.5))
    assert np.allclose(rising(log), expected, rtol=1e-5)


def test_scores_are_multiplied_by_the_scale():
    past, scale = distinct([(user, item) for user in range(9) for item in range(user, 12)]), np.arange(1, 13, dtype="f")
    plain, scaled = factors_of(past, 4), factors_of(past, 4, scale)
    scores, expected = scaled.users @ scaled.items.T, plain.users @ (plain.items * scale[:, None]).T
    assert np.allclose(scores, expected * (scores.max() / expected.max()), atol=1e-5)
