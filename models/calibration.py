"""From a ranker's scores to probabilities: the best fit that never falls as the score rises, or a logistic curve.

Where negatives were left out, weights bring them back: with a share w of them kept, each stands for 1/w, and what is
fitted is p = p'/(p' + (1 - p')/w), p' being what the rows at hand would give (He and others, "Practical lessons from
predicting clicks on ads at Facebook", ADKDD 2014, section 6.3). For isotonic regression the two are equal; a test holds
them together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headwater.errors import DataError

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
NEWTON_STEPS = 100
SURE = 1e-6
"""No probability counts as surer than this where fits are compared: one row would decide."""


@dataclass(frozen=True)
class Calibrator:
    """A polyline through ``scores`` (n_knots,), ascending, and ``probabilities`` (n_knots,), never falling."""

    scores: Floats
    probabilities: Floats

    def __call__(self, scores: Float32s) -> Float32s:
        """Probabilities (n,) of scores (n,); beyond the ends the end's."""
        return np.interp(scores, self.scores, self.probabilities).astype(np.float32)

    @property
    def greatest(self) -> float:
        """The most that it gives."""
        return float(self.probabilities[-1])

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"scores": self.scores, "probabilities": self.probabilities}


@dataclass(frozen=True)
class Platt:
    """``1 / (1 + exp(-(slope * score + intercept)))``."""

    slope: float
    intercept: float

    def __call__(self, scores: Float32s) -> Float32s:
        """Probabilities (n,) of scores (n,)."""
        return logistic(self.slope * np.asarray(scores, np.float64) + self.intercept).astype(np.float32)

    @property
    def greatest(self) -> float:
        """The most that it gives."""
        return 1.0

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"slope": np.array([self.slope]), "intercept": np.array([self.intercept])}


AnyCalibrator = Calibrator | Platt
Method = Literal["isotonic", "platt"]
METHODS: tuple[Method, ...] = ("isotonic", "platt")


def logistic(values: npt.NDArray[Any]) -> Floats:
    """``1 / (1 + exp(-values))``, which overflows nowhere."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float64)


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> AnyCalibrator:
    """Read back what ``arrays`` of either kind gave."""
    if "slope" in arrays:
        return Platt(float(arrays["slope"][0]), float(arrays["intercept"][0]))
    return Calibrator(**arrays)


def fitted(
    method: Method, scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> AnyCalibrator:
    """Fit by a method that is named; see ``fit`` and ``platt``."""
    return platt(scores, labels, weights) if method == "platt" else fit(scores, labels, weights)


def fit(scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Calibrator:
    """Fit on scores (n,) and labels (n,) in [0, 1]; equal scores get equal probabilities.

    ``weights`` (n,) say how many rows each stands for, where some were left out.

    Raises
    ------
    DataError
        There is nothing to fit on, or a score is not a number.
    """
    x, y, w = _checked(scores, labels, weights)
    knots, place = np.unique(x, return_inverse=True)
    stands_for = np.asarray(np.bincount(place, w), np.float64)
    fitted = isotonic(np.bincount(place, w * y) / stands_for, stands_for)
    bends = np.ones(len(knots), bool)  # inside a level stretch no knot is needed
    bends[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Calibrator(knots[bends], fitted[bends])


def platt(scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Platt:
    """Fit a logistic curve to scores (n,) and labels (n,), 0 or 1; ``weights`` as for ``fit``.

    Labels are drawn in a little, as if each class had been met once more, so that the curve stays finite where scores
    part the classes. Newton's method, with steps that are halved until they gain.

    References
    ----------
    Platt, "Probabilistic outputs for support vector machines", 1999.
    Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines", Machine Learning 2007.
    """
    x, y, w = _checked(scores, labels, weights)
    yes, no = float(w @ y), float(w @ (1 - y))
    target = np.where(y > 0, (yes + 1) / (yes + 2), 1 / (no + 2))
    middle, spread = x.mean(), x.std() or 1.0
    design = np.stack([(x - middle) / spread, np.ones(len(x))])
    line = np.array([0.0, np.log((yes + 1) / (no + 1))])

    def loss(at: Floats) -> float:
        z = at @ design
        return float(w @ (np.logaddexp(0, z) - target * z))

    for _ in range(NEWTON_STEPS):
        p = logistic(line @ design)
        gradient = design @ (w * (p - target))
        if np.abs(gradient).max() <= 1e-10 * w.sum():
            break
        curvature = (design * (w * p * (1 - p))) @ design.T + 1e-12 * w.sum() * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(line - size * step) > loss(line) and size > 1e-10:
            size /= 2
        line = line - size * step
    slope = float(line[0] / spread)
    return Platt(slope, float(line[1] - slope * middle))


def better(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any], weights: npt.NDArray[Any], half: npt.NDArray[np.bool_]
) -> Method:
    """The method with the lower log loss where either half (n,) is judged by a fit on the other; isotonic in a tie."""
    losses: dict[Method, float] = {}
    for method in METHODS:
        losses[method] = 0.0
        for judged in (half, ~half):
            told = fitted(method, scores[~judged], labels[~judged], weights[~judged])(scores[judged])
            p = np.clip(told.astype(np.float64), SURE, 1 - SURE)
            losses[method] -= float(weights[judged] @ np.log(np.where(labels[judged] > 0, p, 1 - p)))
    return min(losses, key=lambda method: losses[method])


def isotonic(values: Floats, weights: Floats) -> Floats:
    """Nearest never-falling sequence to ``values`` (n,) in weighted squares (n,).

    Pool adjacent violators: Barlow et al., "Statistical inference under order restrictions", 1972.
    """
    levels: list[tuple[float, float, int]] = []  # mean, weight, length of each level stretch so far
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while levels and levels[-1][0] >= value:
            before, heavy, longer = levels.pop()
            value = (before * heavy + value * weight) / (heavy + weight)
            weight, length = heavy + weight, longer + length
        levels.append((value, weight, length))
    return np.repeat([level[0] for level in levels], [level[2] for level in levels]).astype(np.float64)


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15, weights: npt.ArrayLike | None = None
) -> float:
    """Mean gap between a bin's probability and its share of positives, by bin size; ``weights`` as for ``fit``.

    Bins hold equally many, for purchases are rare; equal probabilities share one.

    References
    ----------
    Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="right")
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    gaps = np.bincount(place, w * (p - y))
    return float(np.abs(gaps).sum() / w.sum())


def _checked(
    scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise DataError(f"calibration: {len(x)} scores, some not finite or none at all. Pass a validation period's.")
    return x, y, np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
