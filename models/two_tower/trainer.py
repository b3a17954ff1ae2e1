"""Trains one pair of towers: steps, checkpoints, and what is exported in the end."""

import math
import time
from collections.abc import Callable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from headwater.errors import ModelError
from headwater.log import get_logger
from models.encoder import UserEncoder
from models.interactions import Dataset
from models.tower_config import TowerConfig
from models.trip_log import Corpus, in_memory
from models.two_tower import checkpoint as checkpoints
from models.two_tower.batches import Batch, Sampler
from models.two_tower.factors import factors_of, past_of, rising, with_factors
from models.two_tower.towers import Towers

logger = get_logger("models")

THREADS = 1  # beside other work a second thread waits more than it helps; fixed, so that every bit is repeatable
SAVED_EVERY_S = 60.0
Progress = Callable[[int, int], None]


class Trainer:
    """Steps, checkpoints and exports one pair of towers.

    A log is passed in epochs, an epoch in blocks. What a block's batches are depends on seed, epoch and place alone,
    so a training that goes on from a checkpoint, taken after any block, ends in the same bits. In a process group of
    :mod:`torch.distributed` each process takes its share of the batches, and all have the same towers.
    """

    def __init__(self, data: Dataset | Corpus, config: TowerConfig, device: str | None = None) -> None:
        corpus = in_memory(data, config.n_recent) if isinstance(data, Dataset) else data
        if not corpus.log.n_trips:
            raise ModelError("towers: no purchase to learn from. Choose a later cutoff, or load purchases.")
        torch.manual_seed(config.seed)
        torch.set_num_threads(THREADS)
        self.config, self.corpus = config, corpus
        self.device = device or pick_device()
        self.sampler = Sampler(corpus.log, config)
        self.towers = Towers(corpus, self.sampler.log_q, config).to(self.device)
        self.loss = _shared(self.towers) if distributed.is_initialized() else self.towers
        self.optimiser = torch.optim.Adam(self.towers.parameters(), config.learning_rate)
        self.blocks_done = 0

    @property
    def epochs(self) -> int:
        """Passes over the purchases, at least one."""
        log, config = self.corpus.log, self.config
        batches = -(-log.n_trips // config.trips_per_batch)
        wanted = max(config.passes, -(-config.least_steps // batches))
        return max(1, min(wanted, config.examples // log.n_purchases))

    @property
    def blocks(self) -> int:
        """Blocks to learn from in all epochs."""
        return self.epochs * len(self.corpus.log.blocks)

    def fit(
        self,
        checkpoint: Path | None = None,
        progress: Progress = lambda done, total: None,
        saved_every_s: float = SAVED_EVERY_S,
    ) -> "Trainer":
        """Train what is left of the budget, resuming from the checkpoint if it is of this very training.

        Parameters
        ----------
        progress
            Told after each block how many are done, and of how many.
        saved_every_s
            Wall seconds between checkpoints, which are taken after a block.

        Raises
        ------
        ModelError
            The loss is no longer finite.
        """
        training = checkpoints.training_id(self.config, self.corpus.log)
        if checkpoint is not None and (state := checkpoints.load(checkpoint, training, self.device)) is not None:
            self._restore(state)
        saved_at = time.monotonic()
        while self.blocks_done < self.blocks:
            epoch, place = divmod(self.blocks_done, len(self.corpus.log.blocks))
            self._learn(epoch, place)
            self.blocks_done += 1
            if checkpoint is not None and time.monotonic() - saved_at >= saved_every_s:
                checkpoints.save(checkpoint, training, self._state())
                saved_at = time.monotonic()
            progress(self.blocks_done, self.blocks)
        return self

    def step(self, batch: Batch) -> Tensor:
        """Move the towers once; the batch's mean loss, nats."""
        loss: Tensor = self.loss(**{name.name: self._tensor(getattr(batch, name.name)) for name in fields(batch)})
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.optimiser.step()
        for table in self.towers.tables():
            table.step()
        return loss.detach()

    def export(self) -> UserEncoder:
        """The towers as arrays, with what is factorised beside them."""
        learned, config = self.towers.export(), self.config
        if not config.factors:
            return learned
        log = self.corpus.log
        past = past_of(log, len(self.corpus.users.ids))
        factors = factors_of(past, config.factors, rising(log) ** config.trend)
        return with_factors(learned, factors, config.factor_weight)

    def _learn(self, epoch: int, place: int) -> None:
        """Step through a block."""
        rank, world = _rank_and_world()
        batches, losses = self.sampler.block(epoch, place), []
        while len(turn := list(islice(batches, world))) == world:  # one for each process; what is left over waits
            losses.append(self.step(turn[rank]))
        loss = float(torch.stack(losses).mean()) if losses else 0.0
        if not math.isfinite(loss):
            raise ModelError(
                f"towers: the loss is {loss} in epoch {epoch + 1}, so nothing more can be learned. "
                "Choose a lower learning rate or a higher temperature."
            )
        logger.debug("block", epoch=epoch + 1, of=self.epochs, block=place + 1, loss=loss)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self.device)
        return tensor if tensor.dtype in (torch.bool, torch.float32) else tensor.long()

    def _state(self) -> dict[str, Any]:
        return {
            "blocks_done": self.blocks_done,
            "towers": self.towers.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.towers.load_state_dict(state["towers"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.blocks_done = state["blocks_done"]


def _shared(towers: Towers) -> DistributedDataParallel:
    """Average gradients over all processes; tables see to that themselves, and are the same in all of them."""
    return DistributedDataParallel(towers, broadcast_buffers=False)


def _rank_and_world() -> tuple[int, int]:
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def pick_device() -> str:
    """Use a GPU if there is one, and say which it is."""
    if not torch.cuda.is_available():
        logger.info("training_on_cpu", reason="no GPU")
        return "cpu"
    logger.info("training_on_gpu", device=torch.cuda.get_device_name(0))
    return "cuda"
