"""The ranker: learned by requests, stopped by later ones, the same twice."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss
from support.labelled import NAMES, labelled

from headwater.errors import DataError
from models import calibration
from models.contributions import mean_contributions
from models.evaluation.metrics import mean
from models.objectives import DEFAULT_OBJECTIVES, Objective
from models.ranking import RankerConfig, fit_ranker, grow, importances, read_rows, split

CONFIG = RankerConfig(rounds=60, least_in_leaf=10, threads=1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    table = labelled()
    pq.write_table(table.slice(0, 1000), directory / "part-0.parquet")
    pq.write_table(table.slice(1000), directory / "part-1.parquet")
    return read_rows(directory, NAMES)


@pytest.fixture(scope="module")
def fitted(rows):
    return fit_ranker(rows, NAMES, CONFIG)


def test_rows_are_read_request_by_request(rows):
    assert np.bincount(rows.group).tolist() == [25] * 120
    assert (np.diff(rows.group) >= 0).all()
    assert (np.diff(rows.at_ms) >= 0).all()
    assert rows.features.dtype == np.float32
    assert np.isnan(rows.features[:, 2]).any()
    assert not np.isnan(rows.features[:, :2]).any()


def test_the_later_slice_is_later_by_the_gap(rows):
    earlier, later = split(rows, CONFIG)
    assert later.at_ms.min() - earlier.at_ms.max() >= CONFIG.gap // timedelta(milliseconds=1)
    assert len(earlier.at_ms) + len(later.at_ms) < len(rows.at_ms)
    assert np.bincount(later.group).tolist() == [25] * len(later.at_ms)


def test_requests_too_close_to_be_parted_are_refused(rows):
    with pytest.raises(DataError, match="parted by time"):
        split(rows, RankerConfig(gap=timedelta(days=400)))


def test_it_learns_what_decides(rows, fitted):
    _, later = split(rows, CONFIG)
    chance = mean(later.ndcg(np.random.default_rng(1).random(len(later)).astype(np.float32)))
    learned = mean(later.ndcg(fitted.ranker.score(later.features)))
    assert learned > chance + 0.2
    assert learned == pytest.approx(fitted.metrics["ndcg@10"])
    shares = importances(fitted.ranker)
    assert next(iter(shares)) == "habit"
    assert sum(shares.values()) == pytest.approx(1)


def test_a_head_of_probabilities_is_stopped_by_their_log_loss(rows):
    earlier, later = split(rows, CONFIG)
    config, yes = replace(CONFIG, learning_rate=0.3), Objective(column="label", learn="binary")
    every = grow(earlier, None, NAMES, config, objective=yes).booster
    told = [every.predict(later.features, num_iteration=n) for n in range(1, config.rounds + 1)]
    best = 1 + int(np.argmin([log_loss(later.label > 0, chances) for chances in told]))
    assert grow(earlier, later, NAMES, config, objective=yes).booster.num_trees() == best < config.rounds


@pytest.mark.parametrize("learn", ["lambdarank", "binary"])
def test_refitted_trees_are_as_many_of_all_requests_and_judged_before(rows, learn):
    declared = DEFAULT_OBJECTIVES.model_copy(
        update={"objectives": {"purchase": Objective(column="label", learn=learn)}}
    )
    config = replace(CONFIG, declared=declared)
    before, after = fit_ranker(rows, NAMES, config), fit_ranker(rows, NAMES, replace(config, refit=True))
    trees = before.ranker.booster.num_trees()
    of_all = grow(rows, None, NAMES, replace(config, rounds=trees), objective=declared.objectives["purchase"])
    assert after.ranker.to_text() == of_all.to_text() != before.ranker.to_text()
    assert after.metrics == before.metrics
    scores = before.ranker.score(rows.features[:100])
    assert (after.calibrator(scores) == before.calibrator(scores)).all()


def test_rows_are_judged_one_by_one_too(rows, fitted):
    _, later = split(rows, CONFIG)
    scores, even = fitted.ranker.score(later.features), later.group % 2 == 0
    label, weight = later.label[even] > 0, later.weight[even].astype(np.float64)
    apart = scores[even][label][:, None] - scores[even][~label]
    pairs = weight[label][:, None] * weight[~label]
    won = ((apart > 0) * pairs).sum() + ((apart == 0) * pairs).sum() / 2
    assert fitted.metrics["auc"] == pytest.approx(won / pairs.sum())
    halves = calibration.fit(scores[~even], later.label[~even], later.weight[~even])
    told = np.clip(halves(scores[even]).astype(np.float64), 2.3e-16, 1 - 2.3e-16)
    missed = -np.average(np.log(np.where(label, told, 1 - told)), weights=weight)
    assert fitted.metrics["log_loss"] == pytest.approx(missed, rel=1e-3)


def test_the_same_rows_give_the_same_trees(rows, fitted):
    assert fit_ranker(rows, NAMES, CONFIG).ranker.to_text() == fitted.ranker.to_text()


def test_it_keeps_the_trees_up_to_the_best_round(fitted):
    assert fitted.ranker.booster.num_trees() == fitted.metrics["trees"] <= CONFIG.rounds


def test_calibrated_scores_are_probabilities_of_being_bought(rows, fitted):
    _, later = split(rows, CONFIG)
    probability = fitted.calibrator(fitted.ranker.score(later.features))
    share = np.average(later.label, weights=later.weight)
    assert np.average(probability, weights=later.weight) == pytest.approx(share, abs=1e-6)
    assert 0 <= fitted.metrics["calibration_error"] < 0.1


def test_contributions_add_up_to_the_score(rows, fitted):
    some = rows.features[:50]
    assert np.allclose(fitted.ranker.contributions(some).sum(1), fitted.ranker.score(some), atol=1e-4)


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(labelled().drop_columns(["habit"]), tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match="no column habit"):
        read_rows(tmp_path, NAMES)


def test_candidates_that_were_not_shown_have_no_label_and_are_left_out(tmp_path, rows):
    table = labelled()
    shown = np.random.default_rng(3).random(len(table)) < 0.7
    pq.write_table(table.append_column("shown", pa.array(shown)), tmp_path / "part-0.parquet")
    read = read_rows(tmp_path, NAMES)
    assert len(read) == shown.sum()
    assert read.label.sum() == table.filter(pa.array(shown))["label"].to_numpy().sum()


def test_what_was_not_shown_may_be_told_to_count_as_not_wanted(tmp_path):
    table = labelled()
    shown = pa.array(np.arange(len(table)) % 2 == 0)
    pq.write_table(table.append_column("shown", shown), tmp_path / "part-0.parquet")
    declared = DEFAULT_OBJECTIVES.model_copy(update={"unshown": "negatives"})
    assert len(read_rows(tmp_path, NAMES, declared)) == len(table)


def test_a_feature_may_have_the_name_of_a_column_of_impressions(tmp_path):
    table = labelled()
    names = ["position" if name == "noise" else "shown" if name == "habit" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), tmp_path / "part-0.parquet")
    read = read_rows(tmp_path, ("shown", "position"))
    assert len(read) == len(table)
    assert read.position is None


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("label", pa.array([None, 1, 0], pa.int8()), "label: 1 of 3 training rows"),
        ("label", pa.array([float("nan"), 1, 0]), "label: 1 of 3 training rows"),
        ("label", pa.array(["yes", "no", "no"]), "label: string is no number"),
        ("weight", pa.array([float("inf"), 1, None]), "weight: 2 of 3 training rows"),
    ],
)
def test_a_label_or_weight_that_is_no_number_is_refused(tmp_path, column, values, why):
    table = labelled().slice(0, 3)
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match=why):
        read_rows(tmp_path, NAMES)


def test_features_without_a_value_or_beyond_all_bounds_are_learned_from(rows):
    odd = rows.features.copy()
    odd[::5, 0], odd[1::5, 1], odd[2::5, 1] = np.nan, np.inf, -np.inf
    fitted = fit_ranker(replace(rows, features=odd), NAMES, CONFIG)
    assert np.isfinite(fitted.ranker.score(odd)).all()
    assert fitted.ranker.trees is not None


@pytest.mark.parametrize(("label", "told"), [(0, "a no"), (1, "a yes")])
def test_labels_that_tell_nothing_apart_are_refused(rows, label, told):
    with pytest.raises(DataError, match=f"earlier requests is {told}, so there is nothing to tell apart"):
        fit_ranker(rows.told_by([label] * len(rows)), NAMES, CONFIG)


def test_mean_contributions_are_means_of_the_rows_own(rows, fitted):
    some = rows.features[:40]
    every = fitted.ranker.contributions(some)[:, :-1]
    told = mean_contributions(fitted.ranker, some)
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert told == pytest.approx({name: np.abs(every[:, at]).mean() for at, name in enumerate(NAMES)})


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="headwater training-set"):
        read_rows(tmp_path, NAMES)
