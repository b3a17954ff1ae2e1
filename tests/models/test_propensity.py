"""Propensities: against examination curves that made the clicks, and against the formulas written out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from typer.testing import CliRunner

from headwater.errors import DataError
from models import propensity
from models.cli import train
from models.objectives import Objectives
from models.propensity import bradley_terry, from_randomised, from_swaps, swapped, wins

PLACES = 6
CURVES = {
    "steep": 1 / np.arange(1, PLACES + 1),
    "flat": np.ones(PLACES),
    "dented": np.array([1, 0.5, 0.6, 0.2, 0.3, 0.1]),
}


def clicks(rng, curve, relevance):
    """Of lists (n, PLACES) of so relevant items."""
    return rng.random(relevance.shape) < curve * relevance


def rotated(rng, curve, users=800, visits=4):
    """The same items to the same user, the order rotated by visits: position, clicked, pair, all (n,)."""
    relevance = rng.random((users, PLACES)) * 0.9
    position, clicked, pair = [], [], []
    for _ in range(visits):
        order = (np.arange(PLACES) + rng.integers(0, PLACES, users)[:, None]) % PLACES  # item at each position
        shown = np.take_along_axis(relevance, order, 1)
        position.append(np.broadcast_to(np.arange(1, PLACES + 1), shown.shape).ravel())
        clicked.append(clicks(rng, curve, shown).ravel())
        pair.append((np.arange(users)[:, None] * PLACES + order).ravel())
    return tuple(map(np.concatenate, (position, clicked, pair)))


def within(found, curve):
    return ((found.low <= curve) & (curve <= found.high)).sum()


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_random_orders_tell_the_curve_that_made_the_clicks(curve):
    rng = np.random.default_rng(3)
    relevance = rng.random((4_000, PLACES))
    yes = clicks(rng, curve, relevance)
    found = from_randomised(
        np.tile(np.arange(1, PLACES + 1), len(yes)), yes.ravel(), np.repeat(np.arange(len(yes)), PLACES)
    )
    assert within(found, curve) >= PLACES - 1  # one of the intervals may miss, at 95 %
    assert np.allclose(found.value, curve, atol=0.06)


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_swaps_tell_the_curve_that_made_the_clicks(curve):
    found = from_swaps(*rotated(np.random.default_rng(4), curve))
    assert within(found, curve) >= PLACES - 1
    assert np.allclose(found.value, curve, atol=0.1)


def test_relevance_that_sinks_with_the_position_misleads_click_rates_but_not_swaps():
    """Items stand where a good ranker puts them, but for neighbours that change places."""
    rng, curve = np.random.default_rng(5), CURVES["steep"]
    relevance = np.sort(rng.random((4_000, PLACES)), 1)[:, ::-1]
    position, clicked, pair = [], [], []
    for visit in range(4):
        order = np.broadcast_to(np.arange(PLACES), relevance.shape).copy()
        if visit % 2:
            first = rng.integers(0, PLACES - 1, len(order))
            rows = np.arange(len(order))
            order[rows, first], order[rows, first + 1] = order[rows, first + 1], order[rows, first]
        shown = np.take_along_axis(relevance, order, 1)
        position.append(np.tile(np.arange(1, PLACES + 1), len(order)))
        clicked.append(clicks(rng, curve, shown).ravel())
        pair.append((np.arange(len(order))[:, None] * PLACES + order).ravel())
    position, clicked, pair = map(np.concatenate, (position, clicked, pair))
    naive = from_randomised(position, clicked, np.arange(len(position)) // PLACES)
    found = from_swaps(position, clicked, pair)
    assert within(naive, curve) == 1  # the first, which is 1 by definition
    assert within(found, curve) >= PLACES - 1


rows = st.lists(
    st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 3)), min_size=4, max_size=40
)  # position, clicked, pair


@given(rows)
@settings(max_examples=60, deadline=None)
def test_wins_are_rates_of_pairs_that_were_seen_at_both_positions(rows):
    position, clicked, pair = (np.array(column) for column in zip(*rows, strict=True))
    expected = np.zeros((position.max(), position.max()))
    for one in set(pair.tolist()):
        places = set(position[pair == one].tolist())
        for k in places:
            for other in places - {k}:
                expected[k - 1, other - 1] += clicked[(pair == one) & (position == k)].mean()
    rate, seen = swapped(position, clicked, pair)
    assert np.allclose(wins(rate, seen, np.ones(len(rate))), expected)


@given(st.lists(st.integers(1, 9), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None)
def test_strengths_are_where_the_likelihood_is_greatest(counts):
    """Bradley and Terry's likelihood by a general optimiser."""
    won = np.zeros((3, 3))
    won[~np.eye(3, dtype=bool)] = counts

    def loss(logs):
        s = np.exp(np.append(0, logs))
        return -(won * np.log(s[:, None] / (s[:, None] + s))).sum()

    best = np.exp(np.append(0, minimize(loss, np.zeros(2)).x))
    found = bradley_terry(won)
    assert np.allclose(found / found[0], best, rtol=1e-3)


@given(rows)
@settings(max_examples=40, deadline=None)
def test_random_positions_are_ratios_of_click_rates(rows):
    position, clicked, request = (np.array(column) for column in zip(*rows, strict=True))
    rate = {k: clicked[position == k].mean() for k in set(position.tolist())}
    if not rate.get(1):
        with pytest.raises(DataError, match="nothing was clicked"):
            from_randomised(position, clicked, request)
        return
    found = from_randomised(position, clicked, request).value
    for k, value in enumerate(found, start=1):
        assert np.isnan(value) if k not in rate else value == pytest.approx(rate[k] / rate[1])


def test_a_position_that_no_swap_leads_to_is_not_told():
    found = from_swaps([1, 2, 1, 2, 3, 4], [1, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2])
    assert found.value[:2].tolist() == pytest.approx([1, 0.5])
    assert np.isnan(found.value[2:]).all()
    assert found.known == (1.0, 0.5)
    assert found.rounded()[3] == (None, None, None)


@pytest.mark.parametrize("positions", [[], [1, np.nan], [0, 1]])
def test_rows_without_positions_are_refused(positions):
    with pytest.raises(DataError, match="without a position"):
        from_randomised(positions, np.ones(len(positions)), np.zeros(len(positions)))


def test_the_command_reads_what_was_shown(tmp_path, monkeypatch):
    position, clicked, pair = rotated(np.random.default_rng(6), CURVES["steep"], users=40)
    n = len(position)
    table = pa.table({
        "request_id": [f"r{at // PLACES}" for at in range(n)], "user_id": [f"u{one // PLACES}" for one in pair],
        "item_id": [f"i{one % PLACES}" for one in pair], "position": pa.array(position, pa.int32()),
        "shown": [True] * n, "click": clicked.astype(np.int8),
    })  # fmt: skip
    unseen = table.slice(0, 50).set_column(4, "shown", pa.array([False] * 50))
    unseen = unseen.set_column(3, "position", pa.nulls(50, pa.int32()))
    pq.write_table(pa.concat_tables([table, unseen]), tmp_path / "part.parquet")
    done = CliRunner().invoke(train, ["propensities", "--rows", str(tmp_path), "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert told["propensities"] == list(from_swaps(position, clicked, pair).known)
    assert told["declare"] == f"propensities = {told['propensities']}"
    with pytest.raises(DataError, match="no column bought"):
        propensity.read_propensities(tmp_path, "bought", False)


def declared(**how):
    position = {"correction": "weights", **how}
    return Objectives.model_validate({"objectives": {"bought": {"column": "label"}}, "position": position})


def shown_rows(folder, rng, positions=True):
    """Rows of lists that were shown, their order rotated, as a training set from impressions has them."""
    position, clicked, pair = rotated(rng, CURVES["steep"], users=2_000)
    columns = {
        "request_id": [f"r{at // PLACES}" for at in range(len(position))],
        "user_id": [f"u{at // PLACES}" for at in pair],
        "item_id": [f"i{at}" for at in pair],
        "shown": np.ones(len(position), bool),
        "click": clicked.astype(np.int8),
    }
    folder.mkdir()
    pq.write_table(pa.table(columns | ({"position": position} if positions else {})), folder / "rows.parquet")
    return folder


def test_a_training_estimates_the_propensities_that_are_to_be_estimated(tmp_path):
    rows = shown_rows(tmp_path / "rows", np.random.default_rng(4))
    found = propensity.settled(declared(estimated="swaps"), rows).position
    assert found.correction == "weights"
    assert np.allclose(found.propensities, CURVES["steep"], rtol=0.15)
    told = declared(propensities=[1.0, 0.5])
    assert propensity.settled(told, rows) is told
    other = declared(estimated="swaps").position.model_copy(update={"clicks": "bought"})
    with pytest.raises(DataError, match="no column bought"):
        propensity.settled(told.model_copy(update={"position": other}), rows)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=12))
def test_what_is_learned_with_never_rises_and_is_never_nought(drawn):
    values = [1.0, *drawn]
    found = np.array(propensity.falling(values))
    assert found[0] == 1
    assert (np.diff(found) <= 0).all()
    assert (found > 0).all()
    assert propensity.falling(found) == tuple(found)
    kept = np.array(propensity.falling(np.sort(np.clip(values, 0.01, 1))[::-1]))
    assert np.allclose(kept, np.sort(np.clip(values, 0.01, 1))[::-1], atol=1e-4), "what falls already stays"


def test_chance_rises_are_levelled_and_positions_without_a_click_have_what_is_above():
    assert propensity.falling([1, 0.5, 0.7, 0.2, 0]) == (1, 0.6, 0.6, 0.2, 0.2)
    assert propensity.falling([1, 1.5, 7.9, 0, 10.8]) == (1, 1, 1, 1, 1)


def test_rows_that_were_not_shown_have_no_position_to_correct(tmp_path):
    rows = shown_rows(tmp_path / "rows", np.random.default_rng(4), positions=False)
    assert propensity.settled(declared(estimated="randomised"), rows).position.correction == "none"
