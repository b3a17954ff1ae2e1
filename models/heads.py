"""One ranker an objective, each calibrated, and the sum by which a surface may order.

::

    worth(row) = sum over objectives of weight * expected(objective, row)

``expected`` is a probability for a click or a purchase, and an amount for a value, so weights are prices: what a click
is worth beside a purchase, or a unit of money beside either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.log import get_logger
from models.calibration import AnyCalibrator, logistic
from models.ranker import Float32s, Ranker

TIE_BREAK = 1e-3
"""Share of an expectation by which rows of one calibrated level keep the order of their scores."""


@dataclass(frozen=True)
class Head:
    """What orders rows by one objective, and what its scores mean."""

    name: str
    ranker: Ranker
    calibrator: AnyCalibrator

    def expected(self, features: Float32s) -> npt.NDArray[np.float64]:
        """Probability or amount that the head expects of each row (n,), float64, from features (n, n_features).

        Calibration may be level over many scores; a last thousandth of its greatest value rises with the score, so
        that the head's order remains.
        """
        scores = self.ranker.score(features)
        rising = self.calibrator.greatest * logistic(scores.astype(np.float64))
        return np.asarray((1 - TIE_BREAK) * self.calibrator(scores) + TIE_BREAK * rising)


@dataclass(frozen=True)
class Weighed:
    """Several heads as one scorer; its scores are worths, and need no calibration."""

    heads: Sequence[tuple[Head, float]]

    def score(self, features: Float32s) -> Float32s:
        """Worth of each row, higher is better (n,), from features (n, n_features)."""
        worth = np.zeros(len(features))
        for head, weight in self.heads:
            worth += weight * head.expected(features)
        return worth.astype(np.float32)


def weigh(heads: Sequence[Head], weights: Mapping[str, Mapping[str, float]]) -> dict[str, Weighed]:
    """Scorers of the surfaces that do not have the order of the main head, which is the first, alone.

    Parameters
    ----------
    weights
        By surface and objective. What a bundle has no head for is left out, with a line in the log: an older one goes
        on serving when the file changes.
    """
    there, main = {head.name: head for head in heads}, heads[0].name
    found = {}
    for surface, asked in weights.items():
        missing = [name for name, weight in asked.items() if weight and name not in there]
        if missing:
            get_logger("models").warning(
                "objectives_without_head", surface=surface, objectives=missing, remedy="headwater train ranker"
            )
        held = [(there[name], weight) for name, weight in asked.items() if weight and name in there]
        if held and not (len(held) == 1 and held[0][0].name == main and held[0][1] > 0):
            found[surface] = Weighed(held)
    return found
