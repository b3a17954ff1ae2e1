"""What a repository declares of the ranker, and what comes of it in trees."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.labelled import NAMES, labelled

from headwater.errors import ConfigError, DataError
from models import calibration
from models.calibration import better
from models.evaluation.metrics import mean
from models.heads import Weighed, weigh
from models.objectives import DEFAULT_OBJECTIVES, Objectives, Position, load_objectives
from models.position import list_by_yes, yes_weights
from models.ranker import FIRST, PLACE
from models.ranking import RankerConfig, Rows, fit_ranker, read_rows, split

CONFIG = RankerConfig(rounds=40, least_in_leaf=10)
ALL = Objectives.model_validate({
    "objectives": {
        "purchase": {"column": "label"}, "click": {"column": "click", "learn": "binary"},
        "value": {"column": "value", "learn": "graded"}, "return": {"column": "sent_back"},
    },
})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows in which clicks follow ``noise``, and what is bought costs more as ``sometimes_missing`` rises."""
    directory, table, rng = tmp_path_factory.mktemp("rows"), labelled(), np.random.default_rng(2)
    noise, dear = table["noise"].to_numpy(), np.nan_to_num(table["sometimes_missing"].to_numpy())
    table = table.append_column("click", pa.array((rng.random(len(noise)) < noise**2).astype(np.int8)))
    value = np.where(table["label"].to_numpy() > 0, 1 + 9 * dear, 0)
    pq.write_table(table.append_column("value", pa.array(value)), directory / "part.parquet")
    return directory


@pytest.fixture(scope="module")
def fitted(folder):
    return fit_ranker(read_rows(folder, NAMES, ALL), NAMES, replace(CONFIG, declared=ALL))


def test_each_objective_with_labels_has_a_head_that_learned_it(folder, fitted):
    assert [head.name for head in fitted.heads] == ["purchase", "click", "value"]  # nothing was sent back
    _, later = split(read_rows(folder, NAMES, ALL), CONFIG)
    chance = mean(later.told_by(later.outcomes["click"]).ndcg(np.random.default_rng(1).random(len(later))))
    assert fitted.metrics["click.ndcg@10"] > chance + 0.1
    assert next(iter(fitted.contributions)) == "habit"
    value = fitted.heads[2]
    expected, amounts = value.expected(later.features), later.outcomes["value"]
    assert np.average(expected, weights=later.weight) == pytest.approx(
        np.average(amounts, weights=later.weight), rel=0.01
    )
    assert np.corrcoef(expected, amounts)[0, 1] > 0.3


def test_other_objectives_leave_the_main_head_as_it_is_alone(folder, fitted):
    alone = fit_ranker(read_rows(folder, NAMES), NAMES, CONFIG)
    assert alone.ranker.to_text() == fitted.ranker.to_text()
    assert {name: fitted.metrics[name] for name in alone.metrics} == alone.metrics
    assert len(alone.heads) == 1


def test_every_head_is_compiled_and_scores_as_lightgbm_does(folder, fitted):
    rows = read_rows(folder, NAMES, ALL).features
    for head in fitted.heads:
        assert head.ranker.trees is not None
        raw = head.ranker.booster.predict(rows, raw_score=True, num_threads=1)
        assert head.ranker.trees.raw_scores(rows).tobytes() == raw.tobytes()


def test_an_objective_whose_labels_tell_nothing_is_left_with_a_line(folder):
    rows = read_rows(folder, NAMES, ALL)
    silent = replace(rows, outcomes={"click": np.zeros(len(rows))})
    with capture_logs() as logs:
        assert len(fit_ranker(silent, NAMES, replace(CONFIG, declared=ALL)).heads) == 1
    assert [line["objective"] for line in logs if line["event"] == "objective_left"] == ["click"]


def test_a_surface_orders_by_the_weighed_sum(fitted):
    features = np.random.default_rng(3).random((50, 3)).astype(np.float32)
    scorer = weigh(fitted.heads, {"home": {"purchase": 1.0, "click": 0.3, "value": 0.0}})["home"]
    worth = []
    for row in features:  # one row and one head at a time, from the formula
        total = 0.0
        for head, weight in zip(fitted.heads, (1.0, 0.3), strict=False):
            score = head.ranker.score(row[None])
            share = 1 / (1 + np.exp(-float(score[0])))
            top = head.calibrator.probabilities.max()
            total += weight * (0.999 * float(head.calibrator(score)[0]) + 0.001 * top * share)
        worth.append(total)
    assert np.allclose(scorer.score(features), worth, rtol=1e-5)


def test_a_head_alone_keeps_its_order_on_level_stretches(fitted):
    features = np.random.default_rng(4).random((300, 3)).astype(np.float32)
    head = fitted.heads[0]
    scores = head.ranker.score(features)
    assert len(np.unique(head.calibrator(scores))) < len(np.unique(scores))  # calibration is level somewhere
    worth = Weighed([(head, 1.0)]).score(features)
    assert np.array_equal(np.argsort(-worth, kind="stable"), np.argsort(-scores, kind="stable"))


def test_the_main_order_alone_needs_no_weighing_and_what_has_no_head_is_left(fitted):
    heads = fitted.heads
    asked = {"home": {"purchase": 2.0, "click": 0.0}, "discover": {"click": 1.0}, "gone": {"sent_back": 1.0}}
    with capture_logs() as logs:
        found = weigh(heads, asked)
    assert list(found) == ["discover"]
    assert [line["objectives"] for line in logs] == [["sent_back"]]
    assert list(weigh(heads, {"home": {"purchase": -1.0}})) == ["home"]


@pytest.mark.parametrize("learn", ["lambdarank", "binary"])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_never_go_against_a_constraint(folder, learn, sign):
    """``sign`` -1 contradicts what the rows say of ``habit``, so it binds."""
    told = {"objectives": {"purchase": {"column": "label", "learn": learn}}, "monotone": {"habit": sign, "noise": 1}}
    declared = Objectives.model_validate(told)
    rows = read_rows(folder, NAMES)
    ranker = fit_ranker(rows, NAMES, replace(CONFIG, declared=declared)).ranker
    assert ranker.trees is not None
    steps = np.linspace(-0.5, 1.5, 80, dtype=np.float32)
    for column, direction in ((0, sign), (1, 1)):
        for row in rows.features[:40]:
            walked = np.repeat(row[None], len(steps), 0)
            walked[:, column] = steps
            raw = ranker.trees.raw_scores(walked)
            assert (direction * np.diff(raw) >= -1e-12).all()
            assert raw.tobytes() == ranker.booster.predict(walked, raw_score=True, num_threads=1).tobytes()


def test_without_a_constraint_some_score_falls(folder):
    """What the test above would see if nothing were constrained."""
    rows = read_rows(folder, NAMES)
    ranker = fit_ranker(rows, NAMES, CONFIG).ranker
    walked = np.repeat(rows.features[:40], 80, 0)
    walked[:, 1] = np.tile(np.linspace(-0.5, 1.5, 80), 40)
    assert (np.diff(ranker.score(walked).reshape(40, 80)) < 0).any()


def test_a_constraint_on_a_feature_that_is_not_read_is_refused_by_name(folder):
    declared = DEFAULT_OBJECTIVES.model_copy(update={"monotone": {"habits": 1}})
    with pytest.raises(ConfigError, match=r"monotone.habits: the ranker reads no such feature.*habit, noise"):
        fit_ranker(read_rows(folder, NAMES), NAMES, replace(CONFIG, declared=declared))


def shown(rng, curve, lists=1_500, places=8):
    """Rows of lists ordered by a misleading feature, clicked by relevance where they were looked at."""
    n = lists * places
    relevance, placed = rng.random((2, lists, places))
    order = np.argsort(-placed + rng.normal(0, 0.2, placed.shape), 1)  # which tells nothing of relevance
    placed = np.take_along_axis(placed, order, 1)
    click = rng.random((lists, places)) < relevance**2 * curve
    return pa.table({
        "request_id": np.repeat([f"r{at:05}" for at in range(lists)], places).tolist(),
        "item_id": [f"i{at}" for at in range(n)],
        "event_timestamp": pa.array(np.repeat(np.arange(lists), places) * 3_600_000, pa.timestamp("ms", tz="UTC")),
        "label": click.ravel().astype(np.int8), "weight": np.ones(n, np.float32),
        "position": pa.array(np.tile(np.arange(1, places + 1), lists), pa.int32()), "shown": [True] * n,
        "relevance": relevance.ravel().astype(np.float32), "placed": placed.ravel().astype(np.float32),
    })  # fmt: skip


CURVE = 1 / np.arange(1, 9) ** 1.5
BIASED = ("relevance", "placed")


@pytest.mark.parametrize("correction", ["weights", "feature"])
@pytest.mark.parametrize("learn", ["lambdarank", "binary"])
def test_corrected_rankers_follow_relevance_more_than_what_ordered_the_log(tmp_path, learn, correction):
    pq.write_table(shown(np.random.default_rng(6), CURVE), tmp_path / "part.parquet")
    rows = read_rows(tmp_path, BIASED)
    features = np.random.default_rng(7).random((2_000, 2)).astype(np.float32)

    def leaning(position):
        """How much the scores follow the log's order, over how much they follow relevance."""
        told = {"objectives": {"purchase": {"column": "label", "learn": learn}}, "position": position}
        config = replace(CONFIG, declared=Objectives.model_validate(told))
        ranker = fit_ranker(rows, BIASED, config).ranker
        assert ranker.feature_names == BIASED
        relevant, placed = (abs(np.corrcoef(ranker.score(features), column)[0, 1]) for column in features.T)
        return placed / relevant

    declared = {"correction": correction, "propensities": CURVE.tolist(), "clip": 100}
    assert leaning(declared) < 0.5 * leaning({"correction": "none"})


def test_trees_with_positions_score_every_row_at_the_first(tmp_path):
    pq.write_table(shown(np.random.default_rng(8), CURVE, lists=300), tmp_path / "part.parquet")
    rows = read_rows(tmp_path, BIASED)
    declared = DEFAULT_OBJECTIVES.model_copy(update={"position": Position(correction="feature")})
    fitted = fit_ranker(rows, BIASED, replace(CONFIG, declared=declared))
    ranker = fitted.ranker
    assert ranker.booster.feature_name() == [*BIASED, PLACE]
    at_first = np.column_stack([rows.features, np.full(len(rows), FIRST, np.float32)])
    expected = ranker.booster.predict(at_first, raw_score=True, num_threads=1).astype(np.float32)
    assert np.array_equal(ranker.score(rows.features), expected)
    assert np.allclose(ranker.contributions(rows.features[:20]).sum(1), expected[:20], atol=1e-4)
    assert set(fitted.contributions) == set(BIASED)


def test_a_yes_weighs_one_over_its_propensity_up_to_the_limit():
    declared = Position(correction="weights", propensities=(1.0, 0.5, 0.1), clip=5)
    position = np.array([1, 2, 3, 9, 2, np.nan], np.float32)
    yes = np.array([True, True, True, True, False, True])
    assert yes_weights(position, yes, declared).tolist() == [1, 2, 5, 5, 1, 1]


labels = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4)


@given(labels)
@settings(max_examples=40, deadline=None)
def test_each_yes_has_a_list_of_itself_and_what_lies_below_it(lists):
    label = np.concatenate(lists).astype(np.int8)
    group = np.repeat(np.arange(len(lists)), [len(one) for one in lists]).astype(np.int32)
    number = np.arange(len(label))
    features, ones = number[:, None].astype(np.float32), np.ones(len(label), np.float32)
    rows = Rows(features, label, ones, group, number.astype(np.int32), np.arange(len(lists)))
    found, weights = list_by_yes(rows, (10 + number).astype(np.float32))
    expected = []
    for yes in np.flatnonzero(label > 0):
        for row in np.flatnonzero(group == group[yes]):
            if row == yes or label[row] < label[yes]:
                expected.append((yes, row, label[yes] if row == yes else 0))
    owners = list(dict.fromkeys(yes for yes, _, _ in expected))
    assert found.group.tolist() == [owners.index(yes) for yes, _, _ in expected]
    assert found.features[:, 0].tolist() == [row for _, row, _ in expected]
    assert found.label.tolist() == [told for _, _, told in expected]
    assert weights.tolist() == [10 + yes for yes, _, _ in expected]


def test_a_correction_without_positions_is_refused(folder):
    declared = DEFAULT_OBJECTIVES.model_copy(update={"position": Position(correction="feature")})
    with pytest.raises(DataError, match="no column position"):
        fit_ranker(read_rows(folder, NAMES), NAMES, replace(CONFIG, declared=declared))


def test_the_method_and_the_bins_are_as_declared(folder):
    rows = read_rows(folder, NAMES)
    for method, kind in (("platt", "Platt"), ("isotonic", "Calibrator")):
        told = {"objectives": {"purchase": {"column": "label"}}, "calibration": {"method": method, "bins": 7}}
        fitted = fit_ranker(rows, NAMES, replace(CONFIG, declared=Objectives.model_validate(told)))
        assert type(fitted.calibrator).__name__ == kind
        assert fitted.metrics["calibration_bins"] == 7
        assert fitted.metrics["calibration_error"] < 0.1
    told["calibration"]["method"] = "validated"
    fitted = fit_ranker(rows, NAMES, replace(CONFIG, declared=Objectives.model_validate(told)))
    _, later = split(rows, CONFIG)
    scores = fitted.ranker.score(later.features)
    method = better(scores, later.label > 0, later.weight, later.group % 2 == 1)
    expected = calibration.fitted(method, scores, later.label, later.weight)
    assert np.array_equal(fitted.calibrator(scores), expected(scores))


def test_the_example_s_file_is_read_and_another_repository_needs_none(tmp_path, request):
    told = load_objectives(request.config.rootpath / "feature_repo")
    assert told.main == "purchase"
    assert load_objectives(tmp_path) is DEFAULT_OBJECTIVES


MAIN = '[objectives.purchase]\ncolumn = "label"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (MAIN + "[weights.home]\nclick = 1\n", "weights.home: 'click' is not one of purchase"),
        (MAIN + "[weights.home]\npurchase = 0\n", "weights.home: all are nought"),
        (MAIN + "[monotone]\nhabit = 2\n", "monotone.habit"),
        (MAIN + '[position]\ncorrection = "weights"\n', "headwater train propensities"),
        (MAIN + "[position]\npropensities = [1.0, 0.0]\n", "position.propensities.1"),
        (MAIN + "[position]\nclip = 0.5\n", "position.clip"),
        (MAIN + "[calibration]\nbins = 1\n", "calibration.bins"),
        (MAIN + "[calibration]\nmethod = 'beta'\n", "calibration.method"),
        (MAIN.replace("purchase", "Purchase"), "objectives.Purchase"),
        (MAIN + 'learn = "graded"\n', "cannot be graded"),
        ("[objectives]\n", "objectives"),
        (MAIN + "speed = 3\n", "speed"),
        ("[objectives", "not TOML"),
    ],
)
def test_what_is_wrong_with_the_file_is_told(tmp_path, text, why):
    (tmp_path / "objectives.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"objectives\.toml") as error:
        load_objectives(tmp_path)
    assert why in str(error.value)
