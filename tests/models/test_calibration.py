"""Calibration: against the min-max formula of isotonic regression, written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from headwater.errors import DataError
from models import calibration
from models.calibration import Calibrator, Platt, better, expected_calibration_error, fit, isotonic, platt

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


def corrected(told, kept):
    """He and others' formula: the probability among all rows, from one where a share of negatives was kept."""
    return told / (told + (1 - told) / kept)


@given(rows, st.sampled_from([0.05, 0.3, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_weighing_the_negatives_that_were_kept_is_the_closed_form_correction(rows, kept):
    scores, labels = np.array(rows, float).T
    weighed = fit(scores, labels, np.where(labels > 0, 1, 1 / kept))
    at = np.unique(scores).astype(np.float32)
    assert np.allclose(weighed(at), corrected(fit(scores, labels)(at).astype(float), kept), atol=1e-6)


def sampled(kept, seed=7, n=60_000):
    """Scores, labels and weights of rows with all positives and a share of the negatives, and the truth."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=n)
    truth = 1 / (1 + np.exp(3 - 1.5 * scores))
    labels = generator.random(n) < truth
    held = labels | (generator.random(n) < kept)
    return scores[held], labels[held], np.where(labels[held], 1, 1 / kept), truth[held]


@pytest.mark.parametrize("kept", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("method", calibration.METHODS)
def test_probabilities_are_right_however_many_negatives_were_left_out(method, kept):
    scores, labels, weights, truth = sampled(kept)
    told = calibration.fitted(method, scores, labels, weights)(scores.astype(np.float32))
    assert np.average(np.abs(told - truth), weights=weights) < 0.01
    assert expected_calibration_error(told, labels, weights=weights) < 0.01
    if kept < 0.5:  # without the weights they would be far off
        naive = calibration.fitted(method, scores, labels)(scores.astype(np.float32))
        assert expected_calibration_error(naive, labels, weights=weights) > 0.05


@given(rows, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_platt_is_where_a_general_optimiser_ends(rows, weight):
    scores, labels = np.array(rows, float).T
    weights = np.where(labels > 0, 1.0, weight)
    yes, no = weights @ labels, weights @ (1 - labels)
    target = np.where(labels > 0, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(line):
        z = line[0] * scores + line[1]
        return weights @ (np.logaddexp(0, z) - target * z)

    found = platt(scores, labels, weights)
    best = minimize(loss, np.zeros(2), method="BFGS")
    assert loss((found.slope, found.intercept)) <= best.fun + 1e-6


def test_the_curve_that_validates_better_is_taken():
    """Few rows of a logistic law want the logistic curve; many of a law with a step want the free one."""
    generator = np.random.default_rng(8)

    def method(n, law):
        scores = generator.normal(size=n)
        labels = generator.random(n) < law(scores)
        return better(scores, labels, np.ones(n), np.arange(n) % 2 == 0)

    assert method(300, lambda scores: 1 / (1 + np.exp(1 - scores))) == "platt"
    assert method(5_000, lambda scores: np.where(scores > 0.5, 0.6, 0.05)) == "isotonic"


@pytest.mark.parametrize("made", [Calibrator(np.array([0.0, 1]), np.array([0.1, 0.9])), Platt(2.0, -1.0)])
def test_either_kind_comes_back_from_its_arrays(made):
    at = np.linspace(-50, 50, 11, dtype=np.float32)
    assert np.array_equal(calibration.from_arrays(made.arrays())(at), made(at))
    assert made(at).max() <= made.greatest
