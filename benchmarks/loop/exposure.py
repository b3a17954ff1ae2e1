"""What generations showed: how many products, how evenly, and which new ones found their shoppers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.loop.run import Generation
from models.evaluation.exposure import gini

NEW = "sim-"
"""How the ids of products begin that came in the simulation."""


@dataclass(frozen=True)
class Exposure:
    """Of a generation: how many products were shown, how evenly, and how many new ones were clicked by its end."""

    shown: int
    gini: float
    discovered: int


def exposures(loop: Sequence[Generation]) -> list[Exposure]:
    """What each generation showed."""
    clicked: set[str] = set()
    told = []
    for generation in loop:
        items, names = pd.factorize(np.concatenate(generation.lists["items"].to_list()))
        clicked |= {item for item in generation.clicked if item.startswith(NEW)}
        told.append(Exposure(len(names), gini(items[None].astype(np.int32), len(names)), len(clicked)))
    return told
