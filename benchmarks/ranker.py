"""Scoring 500 rows × 60 features by trees of 63 leaves: the compiled scorer beside LightGBM's own, one thread each."""

from collections.abc import Sequence

import lightgbm
import numpy as np
from numpy.typing import NDArray

from headwater.bench import Measure, compare, interleaved
from models.compiled_trees import CompiledTrees

ROWS, COLUMNS, LEAVES, TRAINED_ON = 500, 60, 63, 20_000
SHARED = 30
"""Columns that a request's rows have in common, since they are the user's."""
AT_LEAST_MS = 100.0
Rows = NDArray[np.float32]
Scores = NDArray[np.float64]


def measure(size: float) -> Sequence[Measure]:
    """CPU time of scoring, by rows that differ in all columns and by rows of one user, and how many bits differ."""
    rng = np.random.default_rng(11)
    many = _forest(rng, max(10, int(1_000 * size)))
    found = []
    for trees in (max(3, int(300 * size)), many.num_trees()):
        booster = lightgbm.Booster(model_str=many.model_to_string(num_iteration=trees))
        compiled = CompiledTrees.of(booster.model_to_string())
        for name, rows in _rows(rng).items():

            def ours(compiled: CompiledTrees = compiled, rows: Rows = rows) -> Scores:
                return compiled.raw_scores(rows)

            def theirs(booster: lightgbm.Booster = booster, rows: Rows = rows) -> Scores:
                return np.asarray(booster.predict(rows, raw_score=True, num_threads=1))

            told = f"{ROWS} rows × {COLUMNS} features × {trees} trees of {LEAVES} leaves, {name}"
            figures = interleaved({"ours": ours, "theirs": theirs}, at_least_ms=AT_LEAST_MS)
            found.append(compare(told, "CPU ms", figures["ours"], "Booster.predict", figures["theirs"], 6))
            differ = int(np.sum(ours().view(np.int64) != theirs().view(np.int64)))
            found.append(Measure(f"{told}, scores of other bits", differ, "rows", "rows", ROWS, None, 0, differ == 0))
    return found


def _forest(rng: np.random.Generator, trees: int) -> lightgbm.Booster:
    """Columns of each kind that a ranker meets: numbers, counts with many zeros, and such that lack values."""
    features = rng.normal(size=(TRAINED_ON, COLUMNS)).astype(np.float32)
    features[:, ::3] = rng.poisson(2, features[:, ::3].shape)
    features[:, 1::3][rng.random(features[:, 1::3].shape) < 0.1] = np.nan
    target = np.nan_to_num(features) @ rng.normal(size=COLUMNS) + rng.normal(0, 5, TRAINED_ON)
    told = {"objective": "regression", "num_leaves": LEAVES, "verbose": -1, "num_threads": 2, "seed": 1}
    return lightgbm.train(told, lightgbm.Dataset(features, target), trees)


def _rows(rng: np.random.Generator) -> dict[str, Rows]:
    rows = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    rows[:, ::3] = rng.poisson(2, rows[:, ::3].shape)
    rows[:, 1::3][rng.random(rows[:, 1::3].shape) < 0.1] = np.nan
    of_one = rows.copy()
    of_one[:, :SHARED] = rows[0, :SHARED]
    return {"no two alike": rows, "of one user": of_one}
