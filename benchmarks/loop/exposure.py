"""What generations showed: how many products, how evenly, which new ones found their shoppers, and what was told."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.loop.run import Generation
from models.calibration import expected_calibration_error
from models.evaluation.exposure import gini

NEW = "sim-"
"""How the ids of products begin that came in the simulation."""


@dataclass(frozen=True)
class Exposure:
    """Of a generation: how many products were shown, how evenly, and how many new ones were clicked by its end.

    ``calibration_error`` is of the scores, as probabilities of a click (15 bins of as many items).
    """

    shown: int
    gini: float
    discovered: int
    calibration_error: float


def exposures(loop: Sequence[Generation]) -> list[Exposure]:
    """What each generation showed."""
    clicked: set[str] = set()
    told = []
    for generation in loop:
        shown, score, click = (
            np.concatenate(generation.lists[name].to_list()) for name in ("items", "scores", "clicked")
        )
        items, names = pd.factorize(shown)
        clicked |= {item for item in shown[click.astype(bool)] if item.startswith(NEW)}
        unevenness = gini(items[None].astype(np.int32), len(names))
        told.append(Exposure(len(names), unevenness, len(clicked), expected_calibration_error(score, click)))
    return told
