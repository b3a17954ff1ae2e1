"""A list that is left to chance: what each candidate weighs when the places are drawn one after the other.

References
----------
Plackett, "The analysis of permutations", Applied Statistics 1975; Luce, "Individual choice behavior", 1959.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

PLACKETT_LUCE = "plackett_luce"
"""How the log names a list that was drawn whole."""


def draw_weights(
    scores: npt.NDArray[np.floating[Any]], group: npt.NDArray[np.int64], n: int, temperature: float
) -> npt.NDArray[np.float64]:
    """Weights (n_rows,) of a draw in each of ``n`` groups: 1 for the best, e to the -1/temperature for the worst."""
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, group, scores)
    np.maximum.at(high, group, scores)
    span = np.where(high > low, high - low, 1.0)
    return np.asarray(np.exp(((scores - low[group]) / span[group] - 1.0) / temperature), np.float64)
