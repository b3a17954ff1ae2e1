"""What the loop's bench makes of generations and declares; with HEADWATER_TEST_FULL, the notebook that plays two."""

import numpy as np
import pandas as pd
import pytest
from support.notebooks import executed
from support.parts import IS_FULL

from batch.objectives import load_labelling
from benchmarks.loop.bench import exactness, found, measure, over_a_rule, over_the_first, surfaces_of
from benchmarks.loop.exposure import exposures
from benchmarks.loop.page import write_page
from benchmarks.loop.run import HERE, Generation
from headwater.errors import ConfigError
from models.gates import load_rules
from models.objectives import load_objectives
from serving.surfaces import load_surfaces


def generation(worth: float, popular: float, own: float, items=("a", "b"), clicked=()) -> Generation:
    """Two lists of each of thirty shoppers, the second one a little better than the first."""
    users = [f"u{at // 2}" for at in range(60)]
    value = worth + 0.01 * (np.arange(60) % 2)
    told = {"value": value, "best": 0.6, "share": value / 0.6, "popular": popular, "own": own}
    shown = {"items": [list(items)] * 60, "scores": [[0.25] * len(items)] * 60}
    shown["clicked"] = [[item in clicked for item in items]] * 60
    return Generation(pd.DataFrame({"user_id": users, **shown, **told}), {"decision": "champion", "reason": "<better>"})


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


def test_scores_are_held_to_the_clicks_they_foretold():
    assert exposures(ON)[0].calibration_error == pytest.approx(0.25), "nothing was clicked"
    assert exposures(ON)[1].calibration_error == pytest.approx(2 / 3 - 0.25), "two of three were"


def test_each_target_is_held_to_what_was_seen():
    measures = found([ON], [OFF])
    assert [one.holds for one in measures] == [True, True, True, False, True, True, True, None, None]
    assert measures[4].value == pytest.approx(1 - 0.295 / 0.305, abs=1e-4)
    worse = found([ON[::-1]], [OFF[::-1]])
    assert [one.holds for one in worse] == [False, False, False, False, True, False, True, None, None]


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
    assert text.count("<svg") == 6
    assert text.count("<td>on</td>") == text.count("<td>off</td>") == 2
    assert text.count(">missed<") == 1
    write_page(tmp_path / "again.html", [ON], [OFF], found([ON], [OFF]))
    assert (tmp_path / "again.html").read_text() == text


def test_what_the_loop_declares_is_read():
    labelling, rules, objectives = load_labelling(HERE), load_rules(HERE), load_objectives(HERE)
    assert labelling.label == "click"
    assert (rules.promotion.automatic, rules.retraining.learns_from) == (True, "impressions")
    assert (objectives.unshown, objectives.position.correction) == ("negatives", "feature")


def test_only_one_of_the_two_explores(tmp_path):
    homes = []
    for explores in (True, False):
        for number in range(2):
            (tmp_path / "surfaces.toml").write_text(surfaces_of(explores, number))
            homes.append(load_surfaces(tmp_path).surfaces["home"])
    assert [home.explore.share for home in homes] == [0.25, 0.125, 0, 0], "less, the more there is to learn from"
    assert [home.explore.epsilon for home in homes] == [0.3, 0.15, 0, 0]
    assert ["new_items" in home.sources for home in homes] == [True, True, False, False]


def test_a_loop_of_one_generation_is_refused():
    with pytest.raises(ConfigError, match="3 seeds of 1 generations"):
        measure(1.0, generations=1)


@pytest.mark.skipif(not IS_FULL, reason="it makes a platform of its own, four minutes; HEADWATER_TEST_FULL=1 runs it")
@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_the_notebook_closes_the_loop(monkeypatch, tmp_path):
    notebook = executed("close_the_loop", 600, monkeypatch, tmp_path)
    assert all(cell.outputs for cell in notebook.cells[2:-1] if cell.cell_type == "code")
