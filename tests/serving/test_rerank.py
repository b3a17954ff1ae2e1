"""Diversity against the formulas, written out; what is left to chance against what was drawn."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rerank import arrange, dpp, mmr
from serving.rerank.arrange import chances, plackett_luce

EVERY = 1_000
seeds = st.integers(0, 2**32 - 1)


def keeps(chosen, row, caps):
    return all(
        groups[row] < 0 or sum(groups[one] == groups[row] for one in chosen) < most
        for groups, most in zip(*caps, strict=True)
    )


def greedily(scores, limit, worth, caps, pool):
    """Place after place, the item of greatest worth that keeps the caps; then the best that do; then the best."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    left, chosen = order[: pool * limit], []
    while len(chosen) < limit and (able := [row for row in left if keeps(chosen, row, caps)]):
        best = max(able, key=lambda row: (worth(row, chosen), -order.index(row)))
        chosen.append(best)
        left.remove(best)
    for row in order:
        if len(chosen) < limit and row not in chosen and keeps(chosen, row, caps):
            chosen.append(row)
    return chosen + [row for row in order if row not in chosen][: limit - len(chosen)]


def relevance_of(scores, limit, pool):
    best = np.sort(scores)[::-1][: pool * limit]
    low, high = best.min(), best.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def naive_mmr(scores, vectors, limit, diversity, window, caps, pool):
    relevance = relevance_of(scores, limit, pool)

    def worth(row, chosen):
        above = chosen[-window:] if window else chosen
        likest = max((vectors[row] @ vectors[one] for one in above), default=np.float32(0))
        return np.float32(1 - diversity) * relevance[row] - np.float32(diversity) * likest

    return greedily(scores, limit, worth, caps, pool)


def left_of(vectors, row, above):
    """Squared length of what of a vector lies outside the span of others, by least squares."""
    own = vectors[row].astype(float)
    if above:
        base = vectors[above].astype(float).T
        own = own - base @ np.linalg.lstsq(base, own, rcond=None)[0]
    return float(own @ own)


@st.composite
def caps_of(draw, n):
    n_caps = draw(st.integers(0, 2))
    groups = np.array(draw(st.lists(st.lists(st.integers(-1, 3), min_size=n, max_size=n), min_size=n_caps,
                                    max_size=n_caps)), np.int32).reshape(n_caps, n)  # fmt: skip
    return groups, np.array(draw(st.lists(st.integers(1, 4), min_size=n_caps, max_size=n_caps)), np.int32)


@given(st.data(), st.integers(1, 40), st.integers(1, 12), st.floats(0, 1), st.integers(0, 3), seeds)
def test_marginal_relevance_is_the_formula_s(data, n, limit, diversity, window, seed):
    """Scores and vectors are whole eighths, so that sums in any order are exact."""
    rng, caps = np.random.default_rng(seed), data.draw(caps_of(n))
    scores = (rng.permutation(n) / 8).astype(np.float32)
    vectors = (rng.integers(-8, 9, (n, 4)) / 8).astype(np.float32)
    chosen = mmr(scores, vectors, limit, diversity, window=window, caps=caps).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, limit)
    assert chosen == naive_mmr(scores, vectors, limit, diversity, window, caps, 5)


@given(st.data(), st.integers(1, 25), st.integers(1, 8), st.floats(0.05, 1), st.integers(0, 3), seeds)
def test_each_place_has_the_greatest_determinant(data, n, limit, diversity, window, seed):
    """What the fast loop chose is, at every place, no worse than any other by the least squares' volume."""
    rng, caps = np.random.default_rng(seed), data.draw(caps_of(n))
    scores = rng.permutation(n).astype(np.float32)
    vectors = rng.standard_normal((n, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = dpp(scores, vectors, limit, diversity, window=window, caps=caps, pool=EVERY).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, limit)
    gain = relevance_of(scores, limit, EVERY) * ((1 - diversity) / diversity)
    for place, row in enumerate(chosen):
        above = chosen[max(0, place - window) if window else 0 : place]

        def worth(one, above=above):
            outside = left_of(vectors, one, above)
            return gain[one] + np.log(outside) if outside > 1e-6 else -np.inf

        able = [one for one in range(n) if one not in chosen[:place] and keeps(chosen[:place], one, caps)]
        best = max((worth(one) for one in able), default=-np.inf)
        assert best == -np.inf or worth(row) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("method", [mmr, dpp])
def test_without_diversity_it_is_the_order_of_the_scores(method):
    scores = np.array([0.1, 0.9, 0.5, 0.9], np.float32)
    assert method(scores, np.eye(4, dtype=np.float32), 3, 0.0).tolist() == [1, 3, 2]


@pytest.mark.parametrize("method", [mmr, dpp])
def test_a_twin_of_the_best_gives_way_to_something_else(method):
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([1.0, 0.9, 0.8], np.float32)
    assert method(scores, vectors, 2, 0.5).tolist() == [0, 2]
    assert sorted(method(scores, vectors, 3, 0.5).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("method", [mmr, dpp])
def test_nothing_makes_an_empty_list(method):
    assert method(np.empty(0, np.float32), np.empty((0, 4), np.float32), 5, 0.5).tolist() == []


@dataclass(frozen=True)
class Explore:
    share: float = 0.0
    temperature: float = 0.3
    epsilon: float = 0.0
    slot: int = 2


def drawn(n, limit, caps, exploring, seed, may_explore=None):
    rng = np.random.default_rng(3)
    scores = rng.permutation(n).astype(np.float32)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    return arrange(
        scores, vectors, limit, method="mmr", diversity=0.2, caps=caps, exploring=exploring, seed=seed,
        may_explore=may_explore,
    )  # fmt: skip


CAPS = (np.array([[0, 0, 0, 1, 1]], np.int32), np.array([1], np.int32))


@pytest.mark.parametrize("caps", [(np.empty((0, 5), np.int32), np.empty(0, np.int32)), CAPS])
@pytest.mark.parametrize("exploring", [Explore(share=0.5), Explore(epsilon=0.4), Explore(share=0.3, epsilon=0.5)])
@pytest.mark.parametrize("may_explore", [None, np.array([True, True, False, True, False])], ids=["any", "some"])
def test_a_list_s_propensity_is_how_often_it_is_shown(exploring, caps, may_explore):
    """Every list of three of five, over many requests: within four standard errors, and all together certain."""
    times, told, n = {}, {}, 3_000
    for seed in range(n):
        found = drawn(5, 3, caps, exploring, seed, may_explore)
        rows = tuple(found.rows.tolist())
        times[rows] = times.get(rows, 0) + 1
        told[rows] = float(np.prod(found.propensity))
    assert sum(told.values()) == pytest.approx(1, abs=0.02)
    for rows, count in times.items():
        error = np.sqrt(told[rows] * (1 - told[rows]) / n)
        assert count / n == pytest.approx(told[rows], abs=4 * error + 1e-3)


def test_a_list_that_does_not_reach_the_slot_is_drawn_all_the_same():
    scores = np.array([0.3, 0.1], np.float32)
    exploring = Explore(share=1.0, temperature=1.0, slot=3)
    shown = arrange(scores, np.eye(2, dtype=np.float32), 2, method="mmr", diversity=0.0, exploring=exploring, seed=1)
    assert shown.policy == "plackett_luce"
    assert sorted(shown.rows.tolist()) == [0, 1]
    assert 0 < shown.propensity[0] < 1 == shown.propensity[1]


def test_the_slot_takes_what_it_may_and_is_no_slot_where_nothing_is_left():
    no_caps = (np.empty((0, 6), np.int32), np.empty(0, np.int32))
    greedy = drawn(6, 3, no_caps, None, 0).rows
    others = np.setdiff1d(np.arange(6), greedy)
    for allowed, told in ((others[:1], {int(others[0])}), (greedy, set())):
        found = [drawn(6, 3, no_caps, Explore(epsilon=1.0), seed, np.isin(np.arange(6), allowed)) for seed in range(20)]
        assert {int(one.rows[1]) for one in found if one.policy == "slot"} == told
        assert all(np.prod(one.propensity) == 1 for one in found)


def test_what_is_not_left_to_chance_is_certain():
    found = drawn(8, 4, (np.empty((0, 8), np.int32), np.empty(0, np.int32)), Explore(), 1)
    assert found.policy == "greedy"
    assert found.propensity.tolist() == [1, 1, 1, 1]


@given(st.data(), st.integers(1, 12), seeds)
def test_what_is_drawn_is_distinct_possible_and_keeps_the_caps_while_it_can(data, n, seed):
    caps, rng = data.draw(caps_of(n)), np.random.default_rng(seed)
    weights = rng.random(n) + 0.01
    rows = plackett_luce(weights, n, rng, caps)
    assert sorted(rows.tolist()) == list(range(n))
    found = chances(weights, rows, caps)
    assert (found > 0).all()
    for place, row in enumerate(rows.tolist()):
        above = rows[:place].tolist()
        able = [one for one in range(n) if one not in above and keeps(above, one, caps)]
        assert row in able or not able
        among = able or [one for one in range(n) if one not in above]
        assert found[place] == pytest.approx(weights[row] / weights[among].sum())
