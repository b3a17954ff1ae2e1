"""Both towers and the loss of a batch, as one module, and as the arrays that serve."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import SequenceEncoder, UserEncoder
from models.evaluation.metrics import PAD
from models.tower_config import TowerConfig
from models.trip_log import Corpus
from models.two_tower.content import content_of, stacked
from models.two_tower.items import ItemTower
from models.two_tower.losses import against_shared, gbce_loss, softmax_loss
from models.two_tower.rows import Rows
from models.two_tower.users import Block, RecentSequence, UserTower

EXPORTED_AT_A_TIME = 8192


class Towers(nn.Module):
    """Calling it gives a batch's mean loss, so that it can be wrapped, as in ``DistributedDataParallel``."""

    log_q: Tensor

    def __init__(self, corpus: Corpus, log_q: npt.NDArray[np.float32], config: TowerConfig) -> None:
        super().__init__()
        self.config, self.n_items = config, len(corpus.items)
        traits, n_traits = stacked(np.pad(corpus.users.traits, ((1, 0), (0, 0))))
        self.items = ItemTower(content_of(corpus.items, config), config)
        self.users = UserTower(len(corpus.users.ids), torch.from_numpy(traits), max(1, n_traits), config)
        self.register_buffer("log_q", torch.from_numpy(log_q))

    def forward(
        self,
        users: Tensor,
        items: Tensor,
        recent: Tensor,
        ages: Tensor,
        positives: Tensor,
        trip: Tensor,
        negatives: Tensor,
        hidden: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Weighted mean loss of a batch's positives, nats; :class:`models.two_tower.batches.Batch` tells the shapes."""
        with torch.autocast(users.device.type, torch.bfloat16, enabled=self._half(users.device)):
            vectors = self.items(items)
            states = self.users(users, functional.embedding(recent.clamp_min(0), vectors), recent != PAD, ages)
        own = (functional.embedding(trip, states) * functional.embedding(positives, vectors)).sum(1)
        others = functional.embedding(negatives, vectors)
        losses = self._losses(
            own / self.config.temperature, states, others, trip, hidden, items[positives], items[negatives]
        )
        return (losses * weights).sum() / weights.sum().clamp_min(1e-12)

    def _losses(
        self,
        own: Tensor,
        states: Tensor,
        others: Tensor,
        trip: Tensor,
        hidden: Tensor,
        positives: Tensor,
        negatives: Tensor,
    ) -> Tensor:
        config = self.config
        if config.loss == "gbce":
            against = against_shared(
                states, others, hidden, torch.zeros_like(others[:, 0]), config.temperature, config.hard_negatives
            )
            sampled = min(1.0, against.shape[1] / max(self.n_items - 1, 1))
            return gbce_loss(own, against, trip, sampled, config.calibration)
        against = against_shared(
            states, others, hidden, self.log_q[negatives], config.temperature, config.hard_negatives
        )
        return softmax_loss(own - self.log_q[positives], against, trip)

    def tables(self) -> Iterator[Rows]:
        """What moves by itself, beside the parameters."""
        return (module for module in self.modules() if isinstance(module, Rows))

    @torch.no_grad()
    def export(self) -> UserEncoder:
        """Every item's vector, and what the user tower needs."""
        users = self.users
        every = torch.arange(self.n_items, device=self.log_q.device)
        vectors = torch.cat([self.items(part) for part in torch.split(every, EXPORTED_AT_A_TIME)])
        return UserEncoder(
            items=_numpy(vectors), user=_numpy(users.user.rows), traits=_numpy(users.traits).astype(np.int32),
            trait=_numpy(users.trait.rows), hidden=_numpy(users.hidden.weight.T),
            hidden_bias=_numpy(users.hidden.bias), out=_numpy(users.out.weight.T), out_bias=_numpy(users.out.bias),
            sequence=None if users.sequence is None else _exported(users.sequence),
        )  # fmt: skip

    def _half(self, device: torch.device) -> bool:
        return self.config.half_precision and device.type == "cuda" and torch.cuda.is_bf16_supported()


def _exported(sequence: RecentSequence) -> SequenceEncoder:
    """Weights of all blocks, those of one kind in one array, as numpy multiplies them from the right."""
    blocks = [block for block in sequence.blocks if isinstance(block, Block)]

    def weight(name: str) -> npt.NDArray[Any]:
        return np.stack([_numpy(getattr(block, name).weight.T) for block in blocks])

    def bias(name: str) -> npt.NDArray[Any]:
        return np.stack([_numpy(getattr(block, name).bias) for block in blocks])

    joined = weight("joined")  # (n_blocks, dim, 3 * dim)
    n_blocks, dim, _ = joined.shape
    shape = (3, sequence.heads, dim // sequence.heads)
    norms = [[_numpy(part) for norm in (block.before, block.between) for part in (norm.weight, norm.bias)]
             for block in blocks]  # fmt: skip
    return SequenceEncoder(
        now=_numpy(sequence.now), age=_numpy(sequence.age), place=_numpy(sequence.place), norms=np.array(norms),
        joined=joined.reshape(n_blocks, dim, *shape), joined_bias=bias("joined").reshape(n_blocks, *shape),
        out=weight("out"), out_bias=bias("out"), wide=weight("wide"), wide_bias=bias("wide"),
        narrow=weight("narrow"), narrow_bias=bias("narrow"),
        after=np.stack([_numpy(sequence.after.weight), _numpy(sequence.after.bias)]),
    )  # fmt: skip


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
