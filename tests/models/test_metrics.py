"""Metrics against the formula, written slowly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation import metrics
from models.evaluation.metrics import PAD, Relevance, paired_bootstrap

N_ITEMS = 12
lists = st.lists(st.integers(PAD, N_ITEMS - 1), min_size=1, max_size=8)
wanted = st.sets(st.integers(0, N_ITEMS - 1), max_size=6)
depths = st.integers(1, 8)


def relevant_positions(ranked, relevant):
    """The definition: in the list, wanted, and not named before."""
    return [item != PAD and item in relevant and item not in ranked[:n] for n, item in enumerate(ranked)]


def slow_recall(ranked, relevant, k):
    return sum(relevant_positions(ranked, relevant)[:k]) / len(relevant)


def slow_ndcg(ranked, relevant, k):
    gain = sum(1 / math.log2(n + 2) for n, hit in enumerate(relevant_positions(ranked, relevant)[:k]) if hit)
    return gain / sum(1 / math.log2(n + 2) for n in range(min(k, len(relevant))))


def slow_hit_rate(ranked, relevant, k):
    return float(any(relevant_positions(ranked, relevant)[:k]))


def slow_mrr(ranked, relevant, k):
    return next((1 / (n + 1) for n, hit in enumerate(relevant_positions(ranked, relevant)[:k]) if hit), 0.0)


def slow_map(ranked, relevant, k):
    hits = relevant_positions(ranked, relevant)[:k]
    precisions = [sum(hits[: n + 1]) / (n + 1) for n, hit in enumerate(hits) if hit]
    return sum(precisions) / min(k, len(relevant))


ORACLES = {
    "recall": slow_recall,
    "ndcg": slow_ndcg,
    "hit_rate": slow_hit_rate,
    "mrr": slow_mrr,
    "map": slow_map,
}


def test_every_metric_has_an_oracle():
    assert ORACLES.keys() == metrics.METRICS.keys()


@pytest.mark.parametrize("name", ORACLES)
@given(ranked=lists, relevant=wanted, k=depths)
def test_a_metric_equals_its_formula(name, ranked, relevant, k):
    truth = Relevance.from_pairs([1] * len(relevant), sorted(relevant), 3, N_ITEMS)
    users = np.array([1], np.int32)
    hits = truth.hits(users, np.array([ranked], np.int32))
    value = metrics.METRICS[name](hits, truth.sizes[users], k)[0]
    if relevant:
        assert value == pytest.approx(ORACLES[name](ranked, relevant, k))
        assert 0 <= value <= 1
    else:
        assert math.isnan(value)


@given(relevant=wanted, known=wanted)
def test_repeats_and_first_purchases_part_what_is_relevant(relevant, known):
    truth = Relevance.from_pairs([0] * len(relevant), sorted(relevant), 1, N_ITEMS)
    before = Relevance.from_pairs([0] * len(known), sorted(known), 1, N_ITEMS)
    repeats, firsts = truth.split(before)
    assert set(repeats.keys.tolist()) == relevant & known
    assert set(firsts.keys.tolist()) == relevant - known


def test_a_product_of_another_user_is_no_hit():
    truth = Relevance.from_pairs([0, 1], [3, 4], 2, N_ITEMS)
    hits = truth.hits(np.array([0, 1], np.int32), np.array([[4, 3], [4, PAD]], np.int32))
    assert hits.tolist() == [[False, True], [True, False]]


def test_users_are_those_with_something_to_find():
    assert Relevance.from_pairs([4, 2, 2], [0, 1, 1], 6, N_ITEMS).users.tolist() == [2, 4]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), depths)
def test_ties_go_to_the_lower_item_in_both_forms(scores, k):
    expected = sorted(range(len(scores)), key=lambda item: (-scores[item], item))[:k]
    expected += [PAD] * (k - len(expected))
    dense = np.array([scores], np.float32)
    assert metrics.top_k(dense, k)[0].tolist() == expected
    shuffled = np.random.default_rng(0).permutation(len(scores)).astype(np.int32)
    long = metrics.top_k_grouped(np.zeros(len(scores), np.int32), shuffled, dense[0][shuffled], 1, k)
    assert long[0].tolist() == expected


def test_a_group_without_items_has_an_empty_list():
    groups = np.array([2], np.int32)
    assert metrics.top_k_grouped(groups, groups, np.ones(1), 3, 2).tolist() == [[-1, -1], [-1, -1], [2, -1]]


def test_coverage_counts_each_product_once():
    assert metrics.coverage(np.array([[0, 1, PAD], [1, 2, 3]], np.int32), 10, 2) == pytest.approx(0.3)


def test_bootstrap_finds_a_steady_difference_and_doubts_noise():
    generator = np.random.default_rng(0)
    base, noise = generator.random(500), generator.normal(0, 1, 500)
    sure, unsure = paired_bootstrap(base + 0.1, base, 1), paired_bootstrap(base + noise - noise.mean(), base, 1)
    assert sure.mean == pytest.approx(0.1)
    assert sure.excludes_zero
    assert unsure.low < 0 < unsure.high
    assert paired_bootstrap(base, noise, 7) == paired_bootstrap(base, noise, 7)


def test_bootstrap_covers_the_textbook_interval():
    values = np.random.default_rng(3).normal(1, 2, 2000)
    found = paired_bootstrap(values, np.zeros(2000), 1)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_leaves_out_users_with_nothing_to_find():
    a, b = np.array([1.0, np.nan, 3.0]), np.array([0.0, 5.0, 2.0])
    assert paired_bootstrap(a, b, 0).mean == 1.0
