"""The two towers that serve, as a model among others: what a user had lately and who they are, against every item."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from models.encoder import UserEncoder
from models.evaluation.metrics import Ints
from models.interactions import Dataset, Interactions, Items, Users
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import ALL_OF_THEM, Float32s, Scorer
from models.tower_config import TowerConfig
from models.trips import Times, recent_history

if TYPE_CHECKING:
    from models.two_tower import Trainer

TREND = 0.5
"""Lists are made at the end of the log, so what is on the rise there counts."""


@dataclass(frozen=True)
class _Scores:
    encoder: UserEncoder
    recent: Ints
    age_ms: Times

    def scores(self, users: Ints) -> Float32s:
        states = self.encoder.encode(users, self.recent[users], self.age_ms[users])
        return np.asarray(states @ self.encoder.items.T, np.float32)


@dataclass(frozen=True)
class Towers:
    """:mod:`models.two_tower`, over the texts of ``items`` and the traits of ``users``.

    Attributes
    ----------
    passes
        Over the log; a small one is passed more often, as the trainer decides.
    factors
        Rank of what is factorised beside what is learned, 0 for nothing (:mod:`models.two_tower.factors`).
    checkpoint
        Folder in which the state after each epoch is kept, and taken up again.
    """

    users: Users = field(repr=False)
    items: Items = field(repr=False)
    passes: int = 2
    factors: int = 64
    checkpoint: Path | None = field(default=None, repr=False)
    patience: ClassVar[int] = ALL_OF_THEM

    def fit(self, log: Interactions) -> Scorer:
        if not len(log):  # as before what was held out, where all was
            return Popularity().fit(log)
        return _scores(self._trained(log).export(), log)

    def variants(self, log: Interactions) -> Iterator[tuple["Towers", Scorer]]:
        """Trained once, with the factors and without."""
        if not len(log) or not self.factors:
            yield self, self.fit(log)
            return
        trainer = self._trained(log)
        yield self, _scores(trainer.export(), log)
        yield replace(self, factors=0), _scores(trainer.towers.export(), log)

    def _trained(self, log: Interactions) -> "Trainer":
        from models.two_tower import Trainer

        config = TowerConfig(passes=self.passes, factors=self.factors, trend=TREND)
        file = None
        if self.checkpoint is not None:
            self.checkpoint.mkdir(parents=True, exist_ok=True)
            file = self.checkpoint / "towers.pt"
        return Trainer(Dataset(self.users, self.items, log), config).fit(file)


def _scores(encoder: UserEncoder, log: Interactions) -> _Scores:
    end = int(log.at_ms.max(initial=0)) + 1
    everyone = np.arange(log.n_users, dtype=np.int32)
    return _Scores(encoder, *recent_history(log, everyone, end, TowerConfig().n_recent))
