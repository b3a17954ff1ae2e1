"""What the loop's bench makes of generations and declares; with HEADWATER_TEST_FULL, the notebook that plays two."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.labelled import NAMES, labelled
from support.notebooks import executed
from support.parts import IS_FULL

from batch.objectives import load_labelling
from benchmarks.loop.bench import exactness, found, measure, over_a_rule, over_the_first, surfaces_of
from benchmarks.loop.estimates import TEMPERATURE, Foretold, first_places, foretold, learned_apart, true_clicks
from benchmarks.loop.exposure import exposures
from benchmarks.loop.page import write_page
from benchmarks.loop.run import HERE, Generation, mean_buyers
from benchmarks.worlds import chances
from headwater.errors import ConfigError
from headwater.settings import Settings
from models.draws import draw_weights
from models.evaluation.counterfactual import Estimate
from models.evaluation.policies import by_ranker, log_of
from models.gates import load_rules
from models.interactions import Interactions
from models.objectives import load_objectives
from models.paths import paths_of
from models.training import Service
from serving.surfaces import load_surfaces
from simulation.world import Value


def generation(worth: float, popular: float, own: float, items=("a", "b"), clicked=()) -> Generation:
    """Two lists of each of thirty shoppers, the second one a little better than the first."""
    users = [f"u{at // 2}" for at in range(60)]
    value = worth + 0.01 * (np.arange(60) % 2)
    told = {"value": value, "best": 0.6, "share": value / 0.6, "popular": popular, "own": own, "buyers": 7.0}
    told["day"] = np.arange(60) // 30 + 4
    shown = {"items": [list(items)] * 60, "scores": [[0.25] * len(items)] * 60}
    shown["clicked"] = [[item in clicked for item in items]] * 60
    return Generation(
        pd.DataFrame({"user_id": users, **shown, **told}),
        {"decision": "rollout", "reason": "<better>", "rollout": "serves: it is over"},
        came={"sim-1-p0001": 1, "sim-1-p0002": 2},
    )


ON = [generation(0.29, 0.1, 0.35), generation(0.4, 0.1, 0.35, ("a", "c", "sim-1-p0001"), ("a", "sim-1-p0001"))]
OFF = [generation(0.3, 0.1, 0.35), generation(0.3, 0.1, 0.35, ("a",), ("a",))]


def test_gains_are_of_the_same_shoppers():
    gain = over_the_first([ON])
    assert (gain.ours, gain.theirs, gain.shoppers) == (pytest.approx(0.405), pytest.approx(0.295), 30)
    assert gain.difference.mean == pytest.approx(0.11)
    assert over_a_rule([ON], "own").difference.mean == pytest.approx(0.405 - 0.35)
    assert over_a_rule([ON, ON], "popular").difference.low == pytest.approx(0.305)
    others = generation(0.9, 0, 0)
    others.lists["user_id"] = [f"v{at}" for at in range(60)]
    mixed = [ON[0], Generation(pd.concat([ON[1].lists, others.lists]), {})]
    assert over_the_first([mixed]) == gain, "who was in one generation only tells nothing"


def test_new_products_that_were_clicked_stay_discovered():
    again = [*ON, generation(0.4, 0.1, 0.35)]
    assert [one.discovered for one in exposures(again)] == [0, 1, 1]
    assert [one.shown for one in exposures(again)] == [2, 3, 2]
    assert exposures(ON)[0].gini == 0
    assert [one.undiscovered for one in exposures(again)] == [(5 + 4) / 2, (3 + 4) / 2, (3 + 4) / 2]
    assert [one.popularity for one in exposures(ON)] == [7, 7]


def test_what_was_shown_is_as_popular_as_the_shoppers_who_had_bought_it():
    bought = Interactions(np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1]), np.arange(5), 3, 3)
    lists = [np.array([0, 1]), np.array([2, -1]), np.array([0]), np.array([], np.int32)]
    assert mean_buyers(bought, lists).tolist() == [(3 + 1) / 2, 0, 3, 0]


def test_scores_are_held_to_the_clicks_they_foretold():
    assert exposures(ON)[0].calibration_error == pytest.approx(0.25), "nothing was clicked"
    assert exposures(ON)[1].calibration_error == pytest.approx(2 / 3 - 0.25), "two of three were"


def test_each_target_is_held_to_what_was_seen():
    measures = found([ON], [OFF])
    assert [one.holds for one in measures] == [True, True, True, False, True, True, True, *[None] * 5]
    assert measures[4].value == pytest.approx(1 - 0.295 / 0.305, abs=1e-4)
    worse = found([ON[::-1]], [OFF[::-1]])
    assert [one.holds for one in worse] == [False, False, False, False, True, False, True, *[None] * 5]


def test_a_value_that_differs_misses_the_target_and_its_feature_is_named():
    def audit(**mismatched):
        by_feature = {name: {"mismatched": cells} for name, cells in mismatched.items()}
        return {"impressions": 5, "vectors": 100, "cells": 200, "mismatched": sum(mismatched.values()),
                "by_feature": by_feature}  # fmt: skip

    exact = exactness([audit(bought=0), audit(bought=0)])
    assert (exact.value, exact.baseline_value, exact.holds) == (0, 200, True)
    found = exactness([audit(bought=0, shown=3), audit(bought=0, shown=4)])
    assert (found.value, found.holds) == (7, False)
    assert found.note.endswith(", shown 7")
    assert not exactness([]).holds


def test_the_page_tells_each_generation_and_that_all_is_simulated(tmp_path):
    write_page(tmp_path / "loop.html", [ON], [OFF], found([ON], [OFF]))
    text = (tmp_path / "loop.html").read_text()
    assert "All figures are of a simulated world" in text
    assert text.count("<svg") == 8
    assert text.count("<td>on</td>") == text.count("<td>off</td>") == 2
    assert text.count(">missed<") == 1
    assert text.count("rollout: &lt;better&gt;; serves: it is over") == 4
    write_page(tmp_path / "again.html", [ON], [OFF], found([ON], [OFF]))
    assert (tmp_path / "again.html").read_text() == text


@dataclass(frozen=True)
class TinyWorld:
    """Shopper u clicks product i on day d, at a place of ``examined``, with ``liked[d][u, i]`` where one looks."""

    liked: np.ndarray
    examined: np.ndarray

    def users_of(self, ids):
        return np.array([int(name[1:]) for name in ids], np.int32)

    items_of = users_of

    def value(self, users, lists, day):
        clicks = np.where(lists < 0, 0.0, self.liked[day][users[:, None], lists]) * self.examined[: lists.shape[1]]
        return Value(clicks.sum(1), clicks.sum(1), clicks.sum(1))


class Leaning:
    """Ranks by the one feature."""

    feature_names = ("leaning",)

    def score(self, features):
        return features[:, 0]


def drawn_log(rng: np.random.Generator, world: TinyWorld, n: int, behaviour: float = 1.0, every: int = 2):
    """``n`` lists that were drawn at a temperature, and whose they are: what was shown, and one in ``every`` other."""
    rows, lists = [], []
    for at in range(n):
        user, day, k = at % 2, at // 2 % 2, 2 + at % 2
        leaning = 1 - (np.arange(7) + user) % 7 / 6
        left, behind = list(range(7)), np.exp(leaning / behaviour)
        for place in range(k):
            share = behind[left] / behind[left].sum()
            item = left.pop(which := rng.choice(len(left), p=share))
            clicked = rng.random() < world.liked[day][user, item] * world.examined[place]
            rows.append((f"r{at:04}", f"i{item}", place + 1, share[which], 1.0, int(clicked), leaning[item]))
        n_sampled = (7 - k) // every
        for item in rng.choice(left, n_sampled, replace=False):
            rows.append((f"r{at:04}", f"i{item}", None, None, n_sampled / (7 - k), 0, leaning[item]))
        lists.append((f"r{at:04}", f"u{user}", day))
    names = ("request_id", "item_id", "position", "position_propensity", "sampling_probability", "label", "leaning")
    table = pa.Table.from_pandas(pd.DataFrame(rows, columns=names).astype({"position": "Int32"}), preserve_index=False)
    return log_of(table, "log"), pd.DataFrame(lists, columns=["request_id", "user_id", "day"])


@pytest.fixture
def tiny():
    return TinyWorld(np.random.default_rng(0).random((2, 2, 7)), np.array([0.9, 0.6, 0.3]))


def test_the_truth_is_the_sum_over_all_lists_that_the_policy_could_draw(tiny):
    """Of copies too, as many as a sampled candidate stands for, and of lists of another length."""
    log, lists = drawn_log(np.random.default_rng(1), tiny, 6)
    first, found = true_clicks(log, Leaning(), tiny, lists, (1, 3), draws=20_000)
    for at, (_, user, day) in enumerate(lists.itertuples(index=False)):
        rows = log.table.filter(pa.array(log.group == at)).to_pylist()
        scores = np.array([row["leaning"] for row in rows], np.float32)
        weights = draw_weights(scores, np.zeros(len(rows), np.int64), 1, TEMPERATURE)
        copies = [round(1 / row["sampling_probability"]) for row in rows]
        assert max(copies) > 1
        held = np.repeat(weights, copies)
        item = np.repeat(tiny.items_of([row["item_id"] for row in rows]), copies)
        orders = np.array(list(itertools.permutations(range(len(held)), 2 + at % 2)))
        likely = chances(np.broadcast_to(held, (len(orders), len(held))), orders).prod(1)
        worth = tiny.liked[day][int(user[1:])][item[orders]] @ tiny.examined[: orders.shape[1]]
        assert likely.sum() == pytest.approx(1)
        assert found[at] == pytest.approx(likely @ worth, abs=0.01)
        top = tiny.liked[day][int(user[1:])][item] * tiny.examined[0]
        assert first[at] == pytest.approx(held @ top / held.sum(), abs=0.01)


def test_a_policy_near_the_logged_one_is_foretold_and_a_far_one_refused(tiny):
    world = replace(tiny, liked=np.stack([np.linspace(0.9, 0.1, 7)[(np.arange(7) + u) % 7] for u in (0, 1)])[None])
    world = replace(world, liked=np.repeat(world.liked, 2, 0))
    near = _foretold(*_foretelling(world, 0.15))
    assert {"snips_by_place", "dr"} <= near.estimates.keys()
    assert all(near.held.values()), near
    assert not near.refused
    far = _foretold(*_foretelling(world, 30.0, n=60))
    assert (far.estimates, far.held, far.lists) == ({}, {}, 60)
    assert "no estimate is made" in far.refused


def test_what_stood_below_the_first_places_is_a_candidate(tiny):
    """So the log of the first place of longer lists is that of lists of one place."""
    log, lists = drawn_log(np.random.default_rng(4), tiny, 40, every=1)
    one = log_of(first_places(log.table, 1), "log")
    assert (one.n_lists, one.n_shown, len(one.table)) == (40, 40, len(log.table))
    weights = np.exp(one.table["leaning"].to_numpy() / TEMPERATURE)
    whole = np.bincount(one.group, weights)
    assert by_ranker(one, Leaning(), TEMPERATURE).target[:, 0] == pytest.approx((weights[:40] / whole)[one.group[:40]])
    assert _foretold(one, tiny, lists).places == 1


def _foretelling(world, behaviour, n=1_200):
    log, lists = drawn_log(np.random.default_rng(3), world, n, behaviour, every=1)
    return log, world, lists


def _foretold(log, world, lists):
    return foretold(log, Leaning(), true_clicks(log, Leaning(), world, lists, [3])[0])


def test_lists_are_judged_by_trees_that_did_not_learn_from_them(tmp_path):
    settings = Settings(state_dir=tmp_path / "state", repo=tmp_path / "repo")
    folder = paths_of(settings).rows
    folder.mkdir(parents=True)
    judged = labelled()

    def scores(table):
        pq.write_table(table, folder / "part-0.parquet")
        told, ranker = learned_apart(settings, table, Service("recommend", NAMES, "hash"), trees=10)
        features = np.column_stack([told[name].to_numpy() for name in ranker.feature_names]).astype(np.float32)
        return ranker.score(features)

    before = scores(judged)
    half = pc.index_in(judged["request_id"], pc.unique(judged["request_id"])).to_numpy() % 2
    turned = np.where(half == 0, 1 - judged["label"].to_numpy(), judged["label"].to_numpy())
    after = scores(judged.set_column(judged.column_names.index("label"), "label", pa.array(turned, pa.int8())))
    assert (before[half == 0] == after[half == 0]).all(), "what happened in their own half is not known to them"
    assert (before[half == 1] != after[half == 1]).mean() > 0.9


def test_estimates_stand_beside_the_truth_and_are_counted(tmp_path):
    told = Foretold(3, 200, 0.5, {"dr": Estimate(0.45, 0.4, 0.6), "snips_by_place": Estimate(0.7, 0.6, 0.8)})
    refused = [Foretold(places, 20, 0.4, refused="<few>") for places in (3, 10)]
    loop = [replace(ON[0], foretold=[told]), replace(ON[0], foretold=refused), ON[1]]
    off = [OFF[0], *OFF]
    measures = found([loop], [off])
    assert (measures[-1].value, measures[-1].baseline_value, measures[-1].target) == (0.5, 2, None)
    assert measures[-1].note == (
        "dr 1 of 1, snips_by_place 0 of 1, first 3: 1 of 2 refused, first 10: 1 of 1 refused, simulated"
    )
    write_page(tmp_path / "loop.html", [loop], [off], measures)
    text = (tmp_path / "loop.html").read_text()
    assert text.count("<svg") == 10
    assert "3 places: truth 0.500, by 200 lists dr 0.450 [0.400, 0.600], snips_by_place 0.700 [0.600, 0.800]" in text
    assert "10 places: truth 0.400, by 20 lists refused: &lt;few&gt;" in text
    assert found([ON], [OFF])[-1].note == "simulated"


def test_what_the_loop_declares_is_read():
    labelling, rules, objectives = load_labelling(HERE), load_rules(HERE), load_objectives(HERE)
    assert labelling.label == "click"
    assert (rules.promotion.automatic, rules.retraining.learns_from) == (True, "impressions")
    assert (objectives.unshown, objectives.position.correction) == ("negatives", "feature")


def test_only_one_of_the_two_explores(tmp_path):
    homes = []
    for explores in (True, False):
        for number in (0, 1, 4):
            (tmp_path / "surfaces.toml").write_text(surfaces_of(explores, number))
            homes.append(load_surfaces(tmp_path).surfaces["home"])
    assert [home.explore.share for home in homes] == [0.25, 0.15, 0.09, 0, 0, 0], (
        "less, the more there is to learn from"
    )
    assert [home.explore.epsilon for home in homes] == pytest.approx([0.3, 0.18, 0.108, 0, 0, 0])
    assert ["new_items" in home.sources for home in homes] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("seeds", "generations"), [(3, 1), (0, 5), (10, 5)])
def test_a_loop_of_one_generation_and_too_many_seeds_are_refused(seeds, generations):
    with pytest.raises(ConfigError, match=f"{seeds} seeds of {generations} generations"):
        measure(1.0, seeds=seeds, generations=generations)


@pytest.mark.skipif(not IS_FULL, reason="it makes a platform of its own, four minutes; HEADWATER_TEST_FULL=1 runs it")
@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_the_notebook_closes_the_loop(monkeypatch, tmp_path):
    notebook = executed("close_the_loop", 600, monkeypatch, tmp_path)
    assert all(cell.outputs for cell in notebook.cells[2:-1] if cell.cell_type == "code")
