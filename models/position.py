"""Lists are read from the top: what is done about it while the ranker learns.

``weights``
    A yes at position k weighs one over the chance that k is looked at, up to a limit: a purchase far down, where few
    look, counts for those who did not (Joachims and others, "Unbiased learning-to-rank with biased feedback", WSDM
    2017; the limit bounds the variance at the cost of some bias). An order learns from pairs, and a pair weighs as its
    better row does: each yes has a list of its own, of itself and the rows below it, all of one weight.
``feature``
    The trees are given the position as their last column, and every row is scored as if it stood at the first (the
    usual way, say Guo and others, "PAL: a position-bias aware learning framework", RecSys 2019).
"""

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import Ints
from models.objectives import Position
from models.ranker import Float32s
from models.rows import Rows

Bools = npt.NDArray[np.bool_]


def yes_weights(position: Float32s, yes: Bools, declared: Position) -> Float32s:
    """Weights of rows (n,): ``min(clip, 1 / propensity)`` for a yes, 1 for a no and where no position is known.

    Parameters
    ----------
    position : (n,)
        From 1; NaN where unknown. One behind the last declared propensity has the last.
    """
    propensities = np.array(declared.propensities)
    known = ~np.isnan(position)
    place = np.clip(np.where(known, position, 1).astype(np.int64) - 1, 0, len(propensities) - 1)
    weights = np.minimum(declared.clip, 1 / propensities[place])
    return np.where(yes & known, weights, 1).astype(np.float32)


def list_by_yes(rows: Rows, weights: Float32s) -> tuple[Rows, Float32s]:
    """A list for each yes, of itself and, as negatives, what lies below it in its own; and its weight for all its rows.

    Parameters
    ----------
    weights
        Of the rows (n,).
    """
    yes = np.flatnonzero(rows.label > 0)
    sizes = np.bincount(rows.group)
    begins = (np.cumsum(sizes) - sizes)[rows.group[yes]]
    each = sizes[rows.group[yes]]
    owner = np.repeat(np.arange(len(yes)), each)
    row = np.repeat(begins - (np.cumsum(each) - each), each) + np.arange(each.sum())
    own = yes[owner] == row
    kept = own | (rows.label[row] < rows.label[yes[owner]])
    row, owner, own = row[kept], owner[kept].astype(np.int32), own[kept]
    return _listed(rows, row, owner, own), weights[yes][owner]


def _listed(rows: Rows, row: npt.NDArray[np.intp], group: Ints, own: Bools) -> Rows:
    label = np.where(own, rows.label[row], 0).astype(np.int8)
    at_ms = rows.at_ms[rows.group[row[own]]]
    return Rows(rows.features[row], label, rows.weight[row], group, rows.item[row], at_ms)
