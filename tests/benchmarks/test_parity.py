"""The parity bench: its naive fold is the definition, it finds a wrong cell, and at a small count it finds none."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel import USERS, asked, streams
from support.views import every_function

from benchmarks.oracle import History, Row, fold
from benchmarks.parity.bench import measure
from benchmarks.parity.cells import Tally, differing, judge
from benchmarks.parity.views import FUNCTIONS, draw_plan
from headwater.errors import ConfigError
from headwater.plan import HOUR_MS

QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("ttl_ms", [0, 4 * HOUR_MS], ids=["for ever", "ttl of 4 hours"])
@settings(max_examples=100, deadline=None)
@given(stream=streams, questions=asked, known=st.booleans())
def test_a_history_asked_often_tells_what_the_naive_fold_tells(
    stream: list[Row], questions: list[Any], known: bool, ttl_ms: int
) -> None:
    view = every_function(ttl_ms)
    held = {user: History(view, [row for row in stream if row.key == (user,)]) for user in (*USERS, "nobody")}
    for user, t in questions * 2:
        found, values = fold(view, stream, (user,), t, known)
        assert held[user].at(t, known) == (found, list(values.values()))


@QUIET
def test_drawn_definitions_compile_and_fold_every_function() -> None:
    plan, _ = draw_plan(random.Random(0), "drawn")
    assert {one.function.name for view in plan.views for one in view.aggregates} == set(FUNCTIONS)
    assert {len(view.join_keys) for view in plan.views} > {1}
    assert {source.topic for source in plan.sources} == {"drawn_events", "drawn_readings"}


def test_one_bit_too_many_is_a_cell_that_differs() -> None:
    want = np.array([0.1, 0.0, math.nan, math.nan, 5.0])
    got = np.array([np.nextafter(0.1, 1), -0.0, math.nan, 0.0, 5.0])
    assert differing(want, got).tolist() == [True, True, False, True, False]


def test_a_wrong_value_and_a_lost_entity_are_counted_and_the_first_is_named() -> None:
    view = every_function()
    history = History(view, [Row("e", 5, 5, ("ann",), {"kind": "x", "amount": 7, "quantity": 1, "step": "add:1"})])
    naive = [history.at(6), history.at(6)]
    values: dict[str, Any] = {
        one.feature: [cells[at] for _, cells in naive]
        if one.is_list
        else np.array([math.nan if cells[at] is None else cells[at] for _, cells in naive])
        for at, one in enumerate(view.aggregates)
    }
    places = [(("ann",), 6), (("ann",), 6)]
    right, wrong, lost = Tally(), Tally(), Tally()
    judge(right, view, places, naive, values, np.array([True, True]))
    judge(lost, view, places, naive, values, np.array([True, False]))
    values["n_1h"] = np.array([1.0, 2.0])
    values["last_kinds_3h"] = [["x"], ["x", "x"]]
    judge(wrong, view, places, naive, values, np.array([True, True]))
    assert (right.compared, right.mismatched, right.first) == (2 * len(view.features), 0, None)
    assert lost.mismatched == len(view.features)
    assert wrong.mismatched == 2
    assert wrong.first is not None
    assert "n_1h" in wrong.first
    assert "naive 1.0, here" in wrong.first


@pytest.mark.parametrize("engines", ["naive", "spark,flink", "naive,flink", "naive,reader", "naive,hive", ""])
def test_engines_that_cannot_be_compared_are_refused(engines: str) -> None:
    with pytest.raises(ConfigError, match="--engines"):
        measure(1.0, engines=engines)


@QUIET
@pytest.mark.integration
def test_flink_the_store_the_reader_and_spark_equal_the_naive_fold_on_random_definitions() -> None:
    """One round: the job is killed and started again half-way."""
    found = {one.name: one for one in measure(1.0, cells=10_000, engines="naive,spark,flink,reader")}
    assert set(found) == {
        "Flink, store, reader",
        "Flink, store, read_matrix",
        "Spark, as of",
        "Spark, as known",
    }
    assert all(one.value == 0 and one.holds for one in found.values()), [one.note for one in found.values()]
    assert found["Flink, store, reader"].baseline_value >= 10_000
    assert found["Spark, as of"].baseline_value + found["Spark, as known"].baseline_value >= 10_000
