"""The best of each row of scores, in one pass: sorting rows of a whole catalogue takes most of a run's time."""

from typing import Any

import numpy as np

from headwater.loops import compiled
from models.evaluation.metrics import PAD, Ints


def best_columns(scores: Any, k: int) -> Ints:
    """As :func:`models.evaluation.metrics.top_k`, which a test holds this to, of finite scores and -inf."""
    found: Ints = _best_columns(np.ascontiguousarray(scores), k)
    return found


@compiled()
def _best_columns(scores: Any, k: int) -> Any:
    n_rows, n_columns = scores.shape
    places = np.full((n_rows, k), np.int32(PAD))
    held = np.empty(k, scores.dtype)
    for row in range(n_rows):
        held[:] = -np.inf
        least = scores.dtype.type(-np.inf)
        for column in range(n_columns):
            score = scores[row, column]
            if score > least:  # one of the same score came before
                at = k - 1
                while at > 0 and held[at - 1] < score:
                    held[at], places[row, at] = held[at - 1], places[row, at - 1]
                    at -= 1
                held[at], places[row, at] = score, column
                least = held[k - 1]
    return places
