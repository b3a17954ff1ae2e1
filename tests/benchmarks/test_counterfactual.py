"""Worlds whose truth is known: the truth is what loops say, and the bench holds estimates to it at a small size."""

import itertools

import numpy as np
import pytest

from benchmarks import open_bandit
from benchmarks.counterfactual import ESTIMATORS, judged, measure
from benchmarks.worlds import World


def test_a_lists_value_is_the_sum_over_all_lists() -> None:
    world = World.drawn(np.random.default_rng(1), 3, 4, (1.0, 0.5))
    weights = world.weights((1.0, 0.2, 0.0), 0.5)
    value = 0.0
    for situation in range(3):
        for first, second in itertools.permutations(range(4), 2):
            own = weights[situation]
            chance = own[first] / own.sum() * own[second] / (own.sum() - own[first])
            value += chance * (world.relevance[situation, first] + 0.5 * world.relevance[situation, second]) / 3
    assert world.value(weights) == pytest.approx(value)


def test_what_is_drawn_is_what_was_told() -> None:
    """Clicks of a long log earn the true value, and logged propensities are those of the draw."""
    world = World.drawn(np.random.default_rng(2), 5, 4, (1.0, 0.5))
    weights = world.weights((1.0, 0.2, 0.0), 0.5)
    rows = world.log(np.random.default_rng(3), 40_000, weights)
    shown = rows.filter(rows["shown"])
    assert shown["label"].to_numpy().sum() / 40_000 == pytest.approx(world.value(weights), abs=0.02)
    first = shown.filter(shown["position"].to_numpy() == 1)
    situation, item = (first[name].cast("int64").to_numpy() for name in ("user_id", "item_id"))
    assert np.allclose(first["position_propensity"], (weights / weights.sum(1, keepdims=True))[situation, item])


def test_an_estimate_of_a_long_log_is_near_the_truth() -> None:
    truth, found = judged(0, 40_000)
    assert {*found} == {*ESTIMATORS}
    assert all(one.value == pytest.approx(truth, abs=0.03) for one in found.values())


def test_every_figure_is_told_at_a_small_size() -> None:
    found = {one.name: one for one in measure(0.01)}
    coverage = [one for name, one in found.items() if "intervals" in name]
    assert len(coverage) == len(ESTIMATORS)
    assert all(one.value > 0.7 and one.baseline_value == 20 for one in coverage)
    assert found["estimates made where the log has no support"].value == 0
    assert found["true value of a list in the ranker's order"].value > 0


def test_the_open_bandit_sample_is_whole() -> None:
    """Of the even policy, what it earned is its clicks; judged as itself it is worth that."""
    lists = open_bandit.lists("random")
    assert (len(lists.reward), int(lists.reward.sum())) == (10_000, 38)
    assert np.allclose(lists.behaviour, 1 / open_bandit.ITEMS)
    assert int(open_bandit.lists("bts").reward.sum()) == 42
