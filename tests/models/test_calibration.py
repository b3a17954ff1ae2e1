"""Calibration: against the min-max formula of isotonic regression, written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import DataError
from models.calibration import expected_calibration_error, fit, isotonic

rows = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12)
steps = st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=10)


def min_max(values, weights):
    """Largest over the starts before i of the smallest mean over the ends after i."""

    def mean(a, b):
        return np.average(values[a : b + 1], weights=weights[a : b + 1])

    n = len(values)
    return [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


@given(steps)
@settings(max_examples=60, deadline=None)
def test_pooling_is_the_min_max_formula(steps):
    values, weights = np.array(steps, float).T
    assert np.allclose(isotonic(values, weights), min_max(values, weights))


@given(rows)
@settings(max_examples=60, deadline=None)
def test_probabilities_never_fall_and_keep_the_share_of_positives(rows):
    scores, labels = np.array(rows, float).T
    calibrate = fit(scores, labels)
    ascending = calibrate(np.linspace(-5, 5, 41, dtype=np.float32))
    assert (np.diff(ascending) >= 0).all()
    assert ascending.min() >= 0
    assert ascending.max() <= 1
    assert np.isclose(calibrate(scores.astype(np.float32)).mean(), labels.mean(), atol=1e-6)


@given(rows)
@settings(max_examples=30, deadline=None)
def test_the_knots_left_out_change_nothing(rows):
    scores, labels = np.array(rows, float).T
    knots, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    whole = isotonic(np.bincount(place, labels) / counts, counts.astype(float))
    assert np.allclose(fit(scores, labels)(knots.astype(np.float32)), whole)


def test_the_error_is_nought_for_shares_that_come_true_and_the_gap_otherwise():
    probabilities, labels = np.repeat([0.25, 0.75], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0])
    assert expected_calibration_error(probabilities, labels) == 0
    assert expected_calibration_error(probabilities + 0.1, labels) == pytest.approx(0.1)


def test_calibrating_lowers_the_error():
    generator = np.random.default_rng(5)
    scores = generator.normal(size=2000)
    labels = generator.random(2000) < 1 / (1 + np.exp(2 - 3 * scores))
    naive = 1 / (1 + np.exp(-scores))
    calibrated = fit(scores, labels)(scores.astype(np.float32))
    assert expected_calibration_error(calibrated, labels) < 0.2 * expected_calibration_error(naive, labels)


def test_nothing_to_fit_on_is_an_error():
    with pytest.raises(DataError, match="calibration"):
        fit([], [])


@given(rows, st.data())
@settings(max_examples=30, deadline=None)
def test_a_weight_is_as_many_rows(rows, data):
    scores, labels = np.array(rows, float).T
    times = np.array(data.draw(st.lists(st.integers(1, 3), min_size=len(rows), max_size=len(rows))))
    weighted, repeated = fit(scores, labels, times), fit(scores.repeat(times), labels.repeat(times))
    at = np.linspace(-5, 5, 41, dtype=np.float32)
    assert np.allclose(weighted(at), repeated(at))
    errors = [
        expected_calibration_error(weighted(scores.astype(np.float32)), labels, 1, times),
        expected_calibration_error(repeated(scores.repeat(times).astype(np.float32)), labels.repeat(times), 1),
    ]
    assert np.isclose(errors[0], errors[1])
