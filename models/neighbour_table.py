"""Item-to-item as it is served: each item's most similar others, found when a bundle is written."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import PAD, Ints

WIDTH = 30
"""Neighbours kept of each item."""

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NeighbourTable:
    """Row i is item i; mapped perhaps.

    Attributes
    ----------
    items : (n_items, width) int32
        Most similar first, padded with ``PAD``.
    scores : (n_items, width) float32
        Their similarities, 0 where padded.
    """

    items: Ints = field(repr=False)
    scores: Float32s = field(repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def about(self, items: Ints, weights: Float32s, n: int) -> Ints:
        """Up to n others of greatest weighted similarity to some items (n_given,), ties to the lower number.

        Parameters
        ----------
        weights : (n_given,)
            What likeness to each of them counts.
        """
        near = self.items[items]  # (n_given, width)
        there = near != PAD
        found, place = np.unique(near[there], return_inverse=True)
        worth = np.bincount(place, (self.scores[items] * weights[:, None])[there], len(found))
        order = np.lexsort((found, -worth))
        best = found[order[~np.isin(found[order], items)]]
        return np.asarray(best[:n], np.int32)
