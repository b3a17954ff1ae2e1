"""The two towers that serve, as a model among others: what a user had lately and who they are, against every item."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from models.encoder import UserEncoder
from models.evaluation.metrics import Ints
from models.interactions import Dataset, Interactions, Items, Users
from models.retrieval.popularity import Popularity
from models.retrieval.protocol import ALL_OF_THEM, Float32s, Scorer
from models.trips import Times, recent_history

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
    checkpoint
        Folder in which the state after each epoch is kept, and taken up again.
    """

    users: Users = field(repr=False)
    items: Items = field(repr=False)
    passes: int = 2
    checkpoint: Path | None = field(default=None, repr=False)
    patience: ClassVar[int] = ALL_OF_THEM

    def fit(self, log: Interactions) -> Scorer:
        if not len(log):  # as before what was held out, where all was
            return Popularity().fit(log)
        from models.two_tower import TowerConfig, Trainer

        config = TowerConfig(passes=self.passes, trend=TREND)
        file = None
        if self.checkpoint is not None:
            self.checkpoint.mkdir(parents=True, exist_ok=True)
            file = self.checkpoint / "towers.pt"
        encoder = Trainer(Dataset(self.users, self.items, log), config).fit(file).export()
        end = int(log.at_ms.max(initial=0)) + 1
        everyone = np.arange(log.n_users, dtype=np.int32)
        return _Scores(encoder, *recent_history(log, everyone, end, config.n_recent))

    def variants(self, log: Interactions) -> Iterator[tuple["Towers", Scorer]]:
        yield self, self.fit(log)
