"""The towers of :mod:`models.two_tower` trained plainly: each example by itself, all rows moved at each step."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.encoder import UserEncoder
from models.evaluation.metrics import PAD
from models.interactions import Dataset
from models.two_tower import TowerConfig, Trainer
from models.two_tower.batches import weights

BATCH = 1024


class DenseTrainer:
    """Full softmax over the positives of a batch, corrected by how often each is drawn; AdamW over every row.

    Everything else is the same: towers, weights of examples, seed, temperature.
    """

    def __init__(self, data: Dataset, config: TowerConfig, threads: int) -> None:
        self._like = Trainer(data, config, "cpu")
        torch.set_num_threads(threads)
        self.config, self.towers = config, self._like.towers
        (self.trips,) = self._like.corpus.log.blocks
        for table in self.towers.tables():
            rows = table.rows
            del table.rows
            table.rows = nn.Parameter(rows)
        self.optimiser = torch.optim.AdamW(self.towers.parameters(), config.learning_rate)
        self.weight = torch.from_numpy(weights(self.trips, self._like.corpus.log.last_ms, config))
        self._trip_of = np.repeat(np.arange(len(self.trips)), np.diff(self.trips.bounds))
        counts = np.bincount(self.trips.items, minlength=len(data.items))
        self._log_q = torch.from_numpy(np.log(np.maximum(counts, 1) / len(self.trips.items)).astype(np.float32))

    def epoch(self, number: int) -> Iterator[Any]:
        """Places of purchases, a batch at a time, in an order that is drawn."""
        order = np.random.default_rng([self.config.seed, number]).permutation(len(self.trips.items))
        yield from np.array_split(order, range(BATCH, len(order), BATCH))

    def step(self, lines: Any) -> float:
        """Move the towers once; the batch's mean loss, nats."""
        trip = self._trip_of[lines]
        item = torch.from_numpy(self.trips.items[lines].astype(np.int64))
        recent = torch.from_numpy(self.trips.recent[trip].astype(np.int64))
        ages = torch.from_numpy(self.trips.ages[trip].astype(np.int64))
        lately = self.towers.items(recent.clamp_min(0).ravel()).view(*recent.shape, -1)
        users = self.towers.users(torch.from_numpy(self.trips.user[trip].astype(np.int64)), lately, recent != PAD, ages)
        logits = users @ self.towers.items(item).T / self.config.temperature - self._log_q[item]
        twice = (item[:, None] == item) & ~torch.eye(len(item), dtype=torch.bool)
        losses = functional.cross_entropy(
            logits.masked_fill(twice, -torch.inf), torch.arange(len(item)), reduction="none"
        )
        weights = self.weight[torch.from_numpy(lines)]
        loss = (losses * weights).sum() / weights.sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.optimiser.step()
        return float(loss.detach())

    def export(self) -> UserEncoder:
        """As the trainer that is measured exports its own."""
        return self.towers.export()
