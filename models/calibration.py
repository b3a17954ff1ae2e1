"""From a ranker's scores to probabilities: the best fit that never falls as the score rises."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.errors import DataError

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Calibrator:
    """A polyline through ``scores`` (n_knots,), ascending, and ``probabilities`` (n_knots,), never falling."""

    scores: Floats
    probabilities: Floats

    def __call__(self, scores: Float32s) -> Float32s:
        """Probabilities (n,) of scores (n,); beyond the ends the end's."""
        return np.interp(scores, self.scores, self.probabilities).astype(np.float32)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"scores": self.scores, "probabilities": self.probabilities}


def fit(scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Calibrator:
    """Fit on scores (n,) and labels (n,) in [0, 1]; equal scores get equal probabilities.

    ``weights`` (n,) say how many rows each stands for, where some were left out.

    Raises
    ------
    DataError
        There is nothing to fit on, or a score is not a number.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise DataError(f"calibration: {len(x)} scores, some not finite or none at all. Pass a validation period's.")
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    knots, place = np.unique(x, return_inverse=True)
    stands_for = np.asarray(np.bincount(place, w), np.float64)
    fitted = isotonic(np.bincount(place, w * y) / stands_for, stands_for)
    bends = np.ones(len(knots), bool)  # inside a level stretch no knot is needed
    bends[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Calibrator(knots[bends], fitted[bends])


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
