"""Divergences against the formulas word for word, and training rows against vectors that were logged."""

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from support.impressions import archive_impressions

from batch.divergence import BINS, divergence, quantile_edges
from batch.skew import keep, skew
from batch.training_set import META, TrainingSet
from headwater.errors import DataError
from headwater.settings import Settings

values = st.lists(st.integers(-3, 30).map(float), min_size=1, max_size=60)


def by_hand(trained: list[float], served: list[float], edges: list[float]) -> tuple[float, float]:
    """Index and divergence, one bin after the other: what lies above an edge and up to the next."""
    bounds = [-math.inf, *edges, math.inf]
    psi = kl = 0.0
    for low, high in pairwise(bounds):
        counts = [sum(low < value <= high for value in side) for side in (trained, served)]
        p, q = (
            (count + 0.5) / (len(side) + 0.5 * (len(bounds) - 1))
            for count, side in zip(counts, (trained, served), strict=True)
        )
        psi += (q - p) * math.log(q / p)
        kl += q * math.log(q / p)
    return psi, kl


def ones(n: int) -> np.ndarray:
    return np.ones(n)


@given(trained=values, served=values)
@tries(deadline=None)
def test_both_are_what_the_formulas_say(trained, served):
    edges = quantile_edges(np.array(trained), ones(len(trained)))
    found = divergence(np.array(trained), np.array(served), ones(len(trained)), ones(len(served)))
    assert (found.psi, found.kl) == pytest.approx(by_hand(trained, served, edges.tolist()), abs=1e-12)
    assert found.psi >= 0
    assert found.kl >= -1e-12
    assert divergence(np.array(trained), np.array(trained), ones(len(trained)), ones(len(trained))).psi == 0


def test_bins_hold_a_tenth_each_of_what_was_trained_on():
    edges = quantile_edges(np.arange(1000.0), ones(1000))
    assert len(edges) == BINS - 1
    assert np.histogram(np.arange(1000.0), [-np.inf, *np.nextafter(edges, np.inf), np.inf])[0].tolist() == [100] * 10


@given(drawn=st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(1, 4)), min_size=1, max_size=20))
@tries(deadline=None)
def test_a_weight_stands_for_as_many_rows(drawn):
    plain = np.array([value for value, weight in drawn for _ in range(weight)])
    held, weight = (np.array(side, float) for side in zip(*drawn, strict=True))
    assert quantile_edges(held, weight).tolist() == quantile_edges(plain, ones(len(plain))).tolist()


def test_a_constant_feature_that_moves_either_way_is_seen():
    for moved in (4.0, 6.0):
        assert divergence(np.full(100, 5.0), np.full(100, moved), ones(100), ones(100)).psi > 1


def test_what_is_absent_is_a_rate_of_its_own():
    trained, served = np.array([1.0, 2.0, np.nan, np.nan]), np.array([1.0, 2.0, np.nan])
    found = divergence(trained, served, np.array([1, 1, 1, 5.0]), ones(3))
    assert (found.null_trained, found.null_served) == (0.75, pytest.approx(1 / 3))
    nothing = divergence(np.full(3, np.nan), served, ones(3), ones(3))
    assert (nothing.psi, nothing.kl, nothing.null_trained) == (None, None, 1.0)


NAMES = ["steady", "moved", "lost"]


def reply(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Ten items shown with a value that one would think has moved, were it not for those not shown."""
    shown = [{"features": [1.0, 50.0, None]} for _ in range(10)]
    others = [
        {"features": [float(rng.integers(2)), float(rng.normal(30, 1)), 1.0], "probability": 0.01} for _ in range(10)
    ]
    return {
        "time": 1000 + number, "feature_service": "all", "feature_schema": "s", "feature_names": NAMES,
        "bundle_version": "7", "items": shown, "others": others, "views": {},
    }  # fmt: skip


def training_rows(folder: Path, rng: np.random.Generator) -> None:
    n = 5_000
    folder.mkdir()
    columns = {"steady": rng.integers(2, size=n), "moved": rng.normal(0, 1, n), "lost": np.ones(n)}
    pq.write_table(
        pa.table({name: column.astype(np.float32) for name, column in columns.items()}), folder / "part-0.parquet"
    )
    meta = TrainingSet(str(folder), "all", 3, n, None, None, True, 0, 1, "s", "d")
    (folder / META).write_text(json.dumps(asdict(meta)))


def test_what_was_served_is_weighed_to_stand_for_all_candidates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    training_rows(tmp_path / "rows", rng)
    settings = Settings(state_dir=tmp_path)
    archive_impressions(settings, [reply(number, rng) for number in range(100)])
    found = skew(settings, tmp_path / "rows")
    assert found.shifted == ["moved"]
    assert found.features["steady"].psi < 0.01
    assert found.features["lost"].null_trained == 0
    assert found.features["lost"].null_served == pytest.approx(10 / 1010)
    assert (found.served_vectors, found.bundle_versions, found.served_first_ms) == (2_000, {"7": 100}, 1000)
    assert json.loads(keep(settings, found, 5).read_text())["features"]["moved"]["psi"] == found.features["moved"].psi
    assert skew(settings, tmp_path / "rows", 1050, 1060).served_vectors == 200
    with pytest.raises(DataError, match="no vector of service all was logged in that time"):
        skew(settings, tmp_path / "rows", 5_000)
