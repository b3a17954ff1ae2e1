"""The last stage: an order that does not show ten times the same thing."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_POOL = 5  # places looked at for each place shown: what lies deeper is not worth its difference


def mmr(scores: Floats, vectors: Floats, limit: int, diversity: float) -> NDArray[np.intp]:
    """Maximal marginal relevance: each place goes to the item of greatest
    ``(1 - diversity) * relevance - diversity * likeness to the likest item above it``.

    Relevance is the score, scaled so that the pool's best is 1 and its worst 0; ties go to the earlier row.

    Parameters
    ----------
    scores : (n,)
    vectors : (n, dim)
        Unit vectors; likeness is their product.
    diversity
        0 is the order of the scores, 1 looks at likeness alone.

    Returns
    -------
    Rows, best first (at most limit,).

    References
    ----------
    Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """
    pool = np.argsort(-scores, kind="stable")[: _POOL * limit]
    if diversity <= 0 or len(pool) < 2:
        return pool[:limit]
    gain = (1.0 - diversity) * _scaled(scores[pool])
    units = vectors[pool]
    likest = np.full(len(pool), -np.inf, np.float32)
    order = [0]  # the best, which is like nothing above it
    left = np.ones(len(pool), bool)
    left[0] = False
    while len(order) < min(limit, len(pool)):
        np.maximum(likest, units @ units[order[-1]], out=likest)
        worth = np.where(left, gain - diversity * likest, -np.inf)
        best = int(worth.argmax())
        order.append(best)
        left[best] = False
    return pool[order]


def _scaled(scores: Floats) -> Floats:
    low, high = scores.min(), scores.max()
    return np.asarray((scores - low) / (high - low) if high > low else np.zeros(len(scores)), np.float32)
