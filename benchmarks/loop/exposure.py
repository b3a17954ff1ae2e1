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

    Attributes
    ----------
    popularity
        Shoppers who had bought what was shown, on average over lists and their products: average recommendation
        popularity (Abdollahpouri, Burke and Mobasher, FLAIRS 2019).
    undiscovered
        Days from a new product's coming to its first click, or to the generation's end where there was none yet: on
        average over those that had come (restricted mean time), 0 where none had.
    calibration_error
        Of the scores, as probabilities of a click (15 bins of as many items).
    """

    shown: int
    gini: float
    popularity: float
    discovered: int
    undiscovered: float
    calibration_error: float


def exposures(loop: Sequence[Generation]) -> list[Exposure]:
    """What each generation showed."""
    first: dict[str, int] = {}
    told = []
    for generation in loop:
        lists = generation.lists
        shown, score, click = (np.concatenate(lists[name].to_list()) for name in ("items", "scores", "clicked"))
        items, names = pd.factorize(shown)
        day = np.repeat(lists["day"].to_numpy(), lists["items"].map(len))
        for item, at in zip(shown[click.astype(bool)], day[click.astype(bool)], strict=True):
            if item.startswith(NEW):
                first[item] = min(first.get(item, at), at)
        end = int(lists["day"].max()) + 1
        waited = [first.get(item, end) - came for item, came in generation.came.items() if came < end]
        told.append(
            Exposure(
                len(names), gini(items[None].astype(np.int32), len(names)), float(lists["buyers"].mean()), len(first),
                float(np.mean(waited)) if waited else 0.0, expected_calibration_error(score, click),
            )
        )  # fmt: skip
    return told
