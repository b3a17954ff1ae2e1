"""Estimates of a policy that was not shown: against loops, and against the truth where all lists are known."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.logged import FEATURES, rows, shuffled

from headwater.errors import DataError
from models.evaluation import counterfactual
from models.evaluation.counterfactual import LoggedLists, estimate, support
from models.evaluation.policies import by_ranker, by_table, log_of, read_log

shares = st.floats(0.2, 1.0)
places = st.tuples(st.floats(0, 3), shares, shares)  # reward, logged propensity, that of the new policy


@st.composite
def logged(draw: st.DrawFn) -> LoggedLists:
    """Lists of up to three places, long enough to be estimated from."""
    lists = draw(st.lists(st.lists(places, min_size=1, max_size=3), min_size=2, max_size=6))
    filled = [[*each, *[(np.nan,) * 3] * (3 - len(each))] for each in lists]
    return LoggedLists(*np.moveaxis(np.array(filled), 2, 0))


def loops(lists: LoggedLists, clip: float) -> dict[str, float]:
    """The formulas, list by list and place by place."""
    n, width = lists.reward.shape
    weight, earned = np.ones((n, width)), np.zeros((n, width))
    for at in range(n):
        ratio = 1.0
        for place in range(width):
            if not np.isnan(lists.reward[at, place]):
                ratio *= lists.target[at, place] / lists.behaviour[at, place]
                earned[at, place] = lists.reward[at, place]
            weight[at, place] = min(ratio, clip)
    whole = [(weight[at, -1], sum(earned[at])) for at in range(n)]
    return {
        "ips": sum(w * r for w, r in whole) / n,
        "snips": sum(w * r for w, r in whole) / sum(w for w, _ in whole),
        "ips_by_place": sum((weight[at] * earned[at]).sum() for at in range(n)) / n,
        "snips_by_place": sum((weight[:, k] * earned[:, k]).sum() / weight[:, k].sum() for k in range(width)),
    }


@given(logged(), st.floats(1, 20))
def test_estimates_are_the_formulas(lists: LoggedLists, clip: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counterfactual, "LEAST_EFFECTIVE", 0)
        patch.setattr(counterfactual, "MOST_UNSUPPORTED", 1)
        found = estimate(lists, clip)
    assert {name: one.value for name, one in found.items()} == pytest.approx(loops(lists, clip))
    assert all(one.low <= one.value <= one.high for one in found.values())


def all_lists(wrong: float) -> tuple[LoggedLists, np.ndarray, float]:
    """Each list that two policies could show of four items, how likely the logged one is, and the new one's true value.

    ``wrong`` is how far a model is off, item by item.
    """
    rng = np.random.default_rng(3)
    orders = np.array(list(itertools.permutations(range(4), 3)))
    worth, looked = rng.random(4), np.array([1.0, 0.5, 0.2])

    def draw(weights: np.ndarray) -> np.ndarray:
        above = np.cumsum(weights[orders], 1) - weights[orders]
        return weights[orders] / (weights.sum() - above)

    ours, theirs = rng.random(4) + 0.2, rng.random(4) + 0.2
    said = worth + wrong * rng.normal(size=4)
    expected = [
        [looked[k] * sum(theirs[i] * said[i] for i in left) / sum(theirs[i] for i in left)
         for k in range(3) for left in [set(range(4)) - set(order[:k])]]
        for order in orders.tolist()
    ]  # fmt: skip
    reward = worth[orders] * looked
    lists = LoggedLists(reward, draw(ours), draw(theirs), said[orders] * looked, np.array(expected))
    return lists, draw(ours).prod(1), float((draw(theirs).prod(1) * reward.sum(1)).sum())


@pytest.mark.parametrize("wrong", [0.0, 2.0], ids=["a true model", "a wrong model"])
def test_over_all_lists_that_there_are_estimates_are_the_truth(wrong: float) -> None:
    lists, likely, truth = all_lists(wrong)
    weights = lists.weights()
    for each in ((weights * lists.reward).sum(1), weights[:, -1] * lists.reward.sum(1),
                 counterfactual.doubly_robust(lists, weights)):  # fmt: skip
        assert float((likely * each).sum()) == pytest.approx(truth)


def even(n: int, target: float, behaviour: float = 0.5) -> LoggedLists:
    """Lists of one place."""
    return LoggedLists(np.ones((n, 1)), np.full((n, 1), behaviour), np.full((n, 1), target))


def test_a_policy_that_the_log_could_not_show_is_refused_with_its_share() -> None:
    """Half of what it shows is in the log's reach: weights are a half on average."""
    with pytest.raises(DataError, match=r"50\.0% of what it would show has no support in the log"):
        estimate(even(500, target=0.25))
    assert support(even(500, target=0.5)).unsupported == 0


def test_a_log_that_is_worth_few_lists_is_refused() -> None:
    with pytest.raises(DataError, match="worth 29 of its own lists"):
        estimate(even(29, target=0.5))
    assert estimate(even(30, target=0.5))["ips"].value == 1


def test_a_cut_weight_is_counted() -> None:
    lists = LoggedLists(np.ones((100, 1)), np.full((100, 1), 0.5), np.r_[np.full(90, 0.4), np.full(10, 1.0)][:, None])
    assert support(lists, clip=1.5).clipped == 0.1
    assert estimate(lists, clip=1.5)["ips"].value < estimate(lists)["ips"].value


@pytest.mark.parametrize(
    ("reward", "behaviour", "target", "reason"),
    [(*np.empty((3, 0, 1)), "no lists"), ([[np.nan]], [[0.5]], [[0.5]], "without a first place"),
     ([[1]], [[0.0]], [[0.5]], "logged propensity of 0"), ([[1]], [[0.5]], [[1.5]], "1.5 under the new policy"),
     ([[1]], [[np.nan]], [[0.5]], "logged propensity of nan")],
)  # fmt: skip
def test_what_is_no_log_is_refused(reward: Any, behaviour: Any, target: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        LoggedLists(*(np.array(held, float) for held in (reward, behaviour, target)))


class ByNumber:
    """Higher numbers first."""

    feature_names = FEATURES

    def score(self, features: Any) -> Any:
        return features[:, 0]


def test_a_rankers_policy_draws_among_the_candidates_and_those_they_stand_for() -> None:
    log = log_of(shuffled(rows()), "log")
    lists = by_ranker(log, ByNumber(), temperature=0.7)
    told = {(row["request_id"], row["item_id"]): row for row in rows().to_pylist()}
    for at in range(log.n_lists):
        own = [row for (request, _), row in told.items() if request == f"r{at:03}"]
        number = {row["item_id"]: float(row["item_id"][1:]) for row in own}
        low, high = min(number.values()), max(number.values())
        weight = {item: np.exp((held - low) / (high - low) / 0.7) for item, held in number.items()}
        left = sum(weight[row["item_id"]] / row["sampling_probability"] for row in own)
        shown = sorted((row["position"], row["item_id"]) for row in own if row["shown"])
        for position, item in shown:
            assert lists.target[at, position - 1] == pytest.approx(weight[item] / left)
            left -= weight[item]
        assert np.isnan(lists.reward[at, len(shown) :]).all()
        assert lists.behaviour[at, : len(shown)].tolist() == [1 / (5 - place) for place in range(len(shown))]
    assert lists.model is not None
    assert np.isnan(lists.model).tolist() == np.isnan(lists.reward).tolist()


def test_a_table_is_a_policy(tmp_path: Path) -> None:
    log = log_of(shuffled(rows()), "log")
    shown = [row for row in rows().to_pylist() if row["shown"]]
    kept = [{"request_id": row["request_id"], "item_id": row["item_id"], "probability": 0.25}
            for row in shown if row["item_id"] != "i0"]  # fmt: skip
    pq.write_table(shuffled(pa.Table.from_pylist(kept)), tmp_path / "new.parquet")
    lists = by_table(log, tmp_path / "new.parquet")
    assert lists.target[~np.isnan(lists.target)].tolist() == [0.25 * (row["item_id"] != "i0") for row in shown]
    pq.write_table(pa.Table.from_pylist([*kept, kept[0]]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="several probabilities"):
        by_table(log, tmp_path / "twice.parquet")
    pq.write_table(pa.Table.from_pylist([row for row in kept if row["request_id"] > "r010"]), tmp_path / "few.parquet")
    with pytest.raises(DataError, match="27 shown rows are of lists that it says nothing of"):
        by_table(log, tmp_path / "few.parquet")
    pq.write_table(pa.Table.from_pylist(kept).drop(["probability"]), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no column probability"):
        by_table(log, tmp_path / "none.parquet")


def test_a_log_that_lacks_rows_or_columns_is_refused_by_name(tmp_path: Path) -> None:
    whole = rows()
    with pytest.raises(DataError, match="list r000 has no place 1, or has it twice"):
        log_of(whole.slice(1), "log")
    with pytest.raises(DataError, match="no column position_propensity"):
        log_of(whole.drop(["position_propensity"]), "log")
    with pytest.raises(DataError, match="no list was shown"):
        log_of(whole.filter(pa.array([not row["shown"] for row in whole.to_pylist()])), "log")
    with pytest.raises(DataError, match="there is no such log"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no column item_purchases_7d"):
        by_ranker(log_of(whole.drop(["item_purchases_7d"]), "log"), ByNumber(), 0.5)
    with pytest.raises(DataError, match="no column clicks"):
        log_of(whole, "log", reward="clicks")
