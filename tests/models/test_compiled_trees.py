"""The compiled scorer against ``Booster.predict``, bit for bit."""

import re
from collections.abc import Sequence
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from headwater.errors import ModelError
from models.compiled_trees import LANES, STEP, CompiledTrees, NotCoveredError
from models.ranker import Ranker

COLUMNS, CATEGORIES = 6, 70
SIZES = [0, 1, 2, STEP - 1, STEP, STEP + 1, 100, LANES - 1, LANES, LANES + 1, 3 * LANES]
SMALLEST = np.float32(1e-35)
ODD = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, SMALLEST, -SMALLEST, np.nextafter(SMALLEST, np.float32(1)), 1e-40, -1e-40,
     3.4e38, -3.4e38, -1, -0.5, 0.9, 31, 32, 1e6, 2**31, -(2.0**31), 1e20],
    np.float32,
)  # fmt: skip


def train(
    rng: np.random.Generator, trees: int = 12, categorical: Sequence[int] = (), rows: int = 400, **options: Any
) -> lightgbm.Booster:
    """A forest over columns of which some lack values, many are zero and some are categories."""
    features = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
    features[rng.random(features.shape) < 0.2] = 0
    features[:, 1][rng.random(rows) < 0.2] = np.nan
    features[:, 3] = rng.integers(0, 5, rows)
    target = np.nan_to_num(features) @ rng.normal(size=COLUMNS) + rng.normal(size=rows)
    for column in categorical:
        features[:, column] = rng.integers(0, CATEGORIES, rows)
        target += rng.normal(size=CATEGORIES)[features[:, column].astype(int)]
    told = {
        "objective": "regression", "num_leaves": 15, "min_data_in_leaf": 2, "min_data_per_group": 2, "cat_smooth": 1,
        "verbose": -1, "num_threads": 1, "deterministic": True, **options,
    }  # fmt: skip
    data = lightgbm.Dataset(features, target, categorical_feature=list(categorical), params=told)
    return lightgbm.train(told, data, trees)


def questions(rng: np.random.Generator, text: str, rows: int) -> NDArray[np.float32]:
    """Rows of usual values, odd ones, categories, and the thresholds themselves with their neighbours."""
    found = [np.array(line.split(), np.float64) for line in re.findall(r"^threshold=(.+)$", text, re.MULTILINE)]
    with np.errstate(over="ignore"):
        near = np.concatenate(found).astype(np.float32)
    pool = np.concatenate([ODD, near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    kind = rng.random((rows, COLUMNS))
    usual = rng.normal(size=kind.shape)
    category = rng.integers(-2, CATEGORIES + 5, kind.shape)
    picked = pool[rng.integers(0, len(pool), kind.shape)]
    return np.where(kind < 0.3, usual, np.where(kind < 0.5, category, picked)).astype(np.float32)


def expect_equal(text: str, rows: NDArray[np.float32]) -> None:
    expected = lightgbm.Booster(model_str=text).predict(rows, raw_score=True, num_threads=1)
    assert CompiledTrees.of(text).raw_scores(rows).tobytes() == np.asarray(expected, np.float64).tobytes()


@drawn(
    seed=st.integers(0, 2**32 - 1), leaves=st.sampled_from([2, 3, 31, 32, 33, 63, 64, 65, 150]),
    missing=st.sampled_from([{}, {"zero_as_missing": True}, {"use_missing": False}]),
    categorical=st.sampled_from([(), (4,), (1, 4, 5)]), rows=st.sampled_from(SIZES) | st.integers(0, 3 * LANES),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_kind_of_split_scores_as_lightgbm_scores_it(
    seed: int, leaves: int, missing: dict[str, bool], categorical: tuple[int, ...], rows: int
) -> None:
    rng = np.random.default_rng(seed)
    text = train(rng, categorical=categorical, num_leaves=leaves, **missing).model_to_string()
    expect_equal(text, questions(rng, text, rows))


@drawn(
    seed=st.integers(0, 2**32 - 1), missing=st.sampled_from([{}, {"zero_as_missing": True}, {"use_missing": False}]),
    categorical=st.sampled_from([(), (1, 4, 5)]), alike=st.lists(st.booleans(), min_size=COLUMNS, max_size=COLUMNS),
    rows=st.sampled_from(SIZES[1:]) | st.integers(1, 2 * LANES),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_what_all_rows_have_alike_scores_as_lightgbm_scores_it(
    seed: int, missing: dict[str, bool], categorical: tuple[int, ...], alike: list[bool], rows: int
) -> None:
    rng = np.random.default_rng(seed)
    text = train(rng, categorical=categorical, num_leaves=65, **missing).model_to_string()
    asked = questions(rng, text, rows)
    expect_equal(text, np.where(alike, asked[:1], asked))


@drawn(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_feature_may_be_asked_in_every_way_by_one_forest(seed: int) -> None:
    """As after training goes on with other data: what is missing, and where it goes, differs between splits."""
    rng = np.random.default_rng(seed)

    def mixed(line: re.Match[str]) -> str:
        kinds = [int(word) for word in line[1].split()]
        return "decision_type=" + " ".join(
            str(kind if kind & 1 else int(rng.integers(0, 3)) << 2 | int(rng.integers(0, 2)) << 1) for kind in kinds
        )

    given = re.sub(r"^tree_sizes=.*\n", "", train(rng, categorical=(4,)).model_to_string(), flags=re.MULTILINE)
    text = re.sub(r"^decision_type=(.*)$", mixed, given, flags=re.MULTILINE)
    expect_equal(text, questions(rng, text, 200))


def test_a_forest_of_single_leaves_and_one_that_goes_on_from_another_are_scored() -> None:
    rng = np.random.default_rng(0)
    alone = train(rng, trees=3, min_data_in_leaf=1_000, rows=200).model_to_string()
    assert "num_leaves=1" in alone
    rows = rng.normal(size=(5, COLUMNS)).astype(np.float32)
    expect_equal(alone, rows)
    begun = train(rng, trees=5)
    more = lightgbm.Dataset(rng.normal(size=(300, COLUMNS)), rng.normal(size=300))
    told = {"objective": "regression", "learning_rate": 0.01, "verbose": -1, "num_threads": 1}
    longer = lightgbm.train(told, more, 5, init_model=begun).model_to_string()
    expect_equal(longer, questions(rng, longer, 100))


@pytest.mark.parametrize("objective", ["binary", "lambdarank", "poisson"])
def test_the_objective_is_left_out_of_the_raw_score(objective: str) -> None:
    rng = np.random.default_rng(1)
    features, target = rng.normal(size=(200, COLUMNS)), rng.integers(0, 2, 200)
    told = {"objective": objective, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 2}
    text = lightgbm.train(told, lightgbm.Dataset(features, target, group=[100, 100]), 5).model_to_string()
    expect_equal(text, features.astype(np.float32))


def test_a_view_that_cannot_be_written_to_is_scored() -> None:
    rng = np.random.default_rng(2)
    booster = train(rng)
    rows = rng.normal(size=(COLUMNS, 9)).astype(np.float32).T
    rows.flags.writeable = False
    expect_equal(booster.model_to_string(), rows)


def test_a_deep_tree_needs_no_deep_stack() -> None:
    rng = np.random.default_rng(3)
    told = {"objective": "regression", "num_leaves": 3_000, "min_data_in_leaf": 1, "verbose": -1, "num_threads": 1}
    steep = np.repeat(np.arange(3_000.0)[:, None], COLUMNS, 1)
    text = lightgbm.train(told, lightgbm.Dataset(steep, 2.0 ** (steep[:, 0] / 30), params={"max_bin": 4_000}), 1)
    expect_equal(text.model_to_string(), rng.uniform(0, 3_000, (50, COLUMNS)).astype(np.float32))


def test_what_is_not_covered_is_named() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(200, COLUMNS))
    for told, reason in (
        ({"objective": "multiclass", "num_class": 3}, "3 outputs"),
        ({"objective": "regression", "linear_tree": True}, "leaves are linear"),
        ({"objective": "regression", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "averages"),
    ):
        data = lightgbm.Dataset(features, rng.integers(0, 3, 200), params=told)
        with pytest.raises(NotCoveredError, match=reason):
            CompiledTrees.of(lightgbm.train({**told, "verbose": -1}, data, 3).model_to_string())


def test_rows_of_another_width_are_refused() -> None:
    trees = CompiledTrees.of(train(np.random.default_rng(5), trees=1).model_to_string())
    with pytest.raises(ModelError, match=re.escape("(2, 5) is not (rows, 6)")):
        trees.raw_scores(np.zeros((2, 5), np.float32))


def test_a_ranker_scores_by_compiled_trees_or_says_once_that_it_cannot() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(20, COLUMNS)).astype(np.float32)
    for told, is_compiled in (({}, True), ({"linear_tree": True}, False)):
        booster = train(rng, **told)
        ranker = Ranker(booster)
        expected = np.asarray(booster.predict(rows, raw_score=True, num_threads=1), np.float32)
        with capture_logs() as said:
            assert [np.array_equal(ranker.score(rows), expected) for _ in range(2)] == [True, True]
        assert (ranker.trees is not None) == is_compiled
        assert [line["event"] for line in said] == ([] if is_compiled else ["ranker_not_compiled"])
