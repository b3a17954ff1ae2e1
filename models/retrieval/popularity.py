"""What everybody buys, all of it alike or the newer the more."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.retrieval.protocol import ALL_OF_THEM, Float32s


@dataclass(frozen=True)
class _Scores:
    of_items: Float32s

    def scores(self, users: Ints) -> Float32s:
        return np.repeat(self.of_items[None], len(users), 0)


@dataclass(frozen=True)
class Popularity:
    """Items by the number of their interactions, each halved with every ``half_life`` of the log since then.

    Attributes
    ----------
    half_life
        As a share of the log's interactions, since not every log has times; ``None`` counts all alike.
    """

    half_life: float | None = None
    patience: ClassVar[int] = ALL_OF_THEM

    def fit(self, log: Interactions) -> _Scores:
        weights = None
        if self.half_life is not None:
            since = np.arange(len(log), 0, -1) / max(len(log), 1)
            weights = np.exp2(-since / self.half_life)
        return _Scores(np.bincount(log.item, weights, minlength=log.n_items).astype(np.float32))

    def variants(self, log: Interactions) -> Iterator[tuple["Popularity", _Scores]]:
        yield self, self.fit(log)


def below_zero(log: Interactions) -> Float32s:
    """Popularity in [-1, 0), for items that a model has no score for and that come after all it has (n_items,)."""
    counts = np.bincount(log.item, minlength=log.n_items).astype(np.float32)
    return np.asarray(counts / (counts.max(initial=0) + 1) - 1, np.float32)
