"""What a step learns from, drawn from a log of trips."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import PAD, Ints
from models.tower_config import TowerConfig
from models.trip_log import TripLog
from models.trips import Times, Trips

DAY_MS = 86_400_000
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Some trips and the distinct products they touch; recent, positives and negatives are places in ``items``.

    Attributes
    ----------
    users, recent, ages : (n_trips,), (n_trips, n_recent), (n_trips, n_recent)
    items : (n_items,)
    positives, trip, weights : (n_positives,)
        Each with the trip that it is of, and what it weighs.
    negatives : (n_negatives,)
    hidden : (n_trips, n_negatives)
        Whether the trip did hold the negative.
    """

    users: Ints
    items: Ints
    recent: Ints
    ages: npt.NDArray[np.uint8]
    positives: Ints
    trip: Ints
    negatives: Ints
    hidden: npt.NDArray[np.bool_]
    weights: Float32s


class Sampler:
    """Draws batches, a block at a time; the draw depends on the seed, the epoch and the place in it alone.

    Negatives are shared by the batch: some drawn from its own positives, the others from the whole catalogue (mixed
    negative sampling: Yang et al., WWW 2020).
    """

    def __init__(self, log: TripLog, config: TowerConfig) -> None:
        self.log, self.config, self.n_items = log, config, len(log.counts)
        popularity = log.counts / max(log.n_purchases, 1)
        share = config.from_batch
        expected = config.negatives * (share * popularity + (1 - share) / max(self.n_items, 1))
        self.log_q = np.log(np.maximum(expected, 1e-12)).astype(np.float32)
        self._place = np.full(self.n_items, PAD, np.int32)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All batches of an epoch, block after block."""
        for place in range(len(self.log.blocks)):
            yield from self.block(number, place)

    def block(self, epoch: int, place: int) -> Iterator[Batch]:
        """Batches of the block that comes at ``place`` in an epoch."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.log.blocks))
        generator = np.random.default_rng([self.config.seed, epoch, place])
        trips = self.log.blocks[int(order[place])]
        weight = weights(trips, self.log.last_ms, self.config)
        drawn = generator.permutation(len(trips))
        for start in range(0, len(drawn), self.config.trips_per_batch):
            yield self._batch(trips, weight, drawn[start : start + self.config.trips_per_batch], generator)

    def _batch(self, trips: Trips, weight: Float32s, rows: Times, generator: np.random.Generator) -> Batch:
        lengths = trips.bounds[rows + 1] - trips.bounds[rows]
        trip = np.repeat(np.arange(len(rows)), lengths).astype(np.int32)
        lines = np.repeat(trips.bounds[rows] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        positives, recent = trips.items[lines], trips.recent[rows]
        drawn = self._negatives(positives, generator)
        items = np.unique(np.concatenate([positives, drawn, recent[recent != PAD]]))
        place = self._place
        place[drawn] = np.arange(len(drawn))
        held = place[positives]
        hidden = np.zeros((len(rows), len(drawn)), bool)
        hidden[trip[held != PAD], held[held != PAD]] = True
        place[drawn] = PAD
        place[items] = np.arange(len(items))
        batch = Batch(
            users=trips.user[rows], items=items, recent=np.where(recent == PAD, PAD, place[np.maximum(recent, 0)]),
            ages=trips.ages[rows], positives=place[positives], trip=trip, negatives=place[drawn], hidden=hidden,
            weights=weight[lines],
        )  # fmt: skip
        place[items] = PAD
        return batch

    def _negatives(self, positives: Ints, generator: np.random.Generator) -> Ints:
        from_batch = round(self.config.negatives * self.config.from_batch)
        anywhere = generator.integers(0, self.n_items, self.config.negatives - from_batch, dtype=np.int32)
        drawn: Ints = np.unique(np.concatenate([generator.choice(positives, from_batch), anywhere]))
        return drawn


def weights(trips: Trips, last_ms: int, config: TowerConfig) -> Float32s:
    """What each purchase weighs (n_purchases,): less the older, and less if the user had the product before."""
    recency = np.exp2(-(last_ms - trips.at_ms) / (config.example_half_life_days * DAY_MS))
    novelty = np.where(trips.is_first, 1.0, config.repeat_weight)
    return np.asarray(np.repeat(recency, np.diff(trips.bounds)) * novelty, np.float32)
