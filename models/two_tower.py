"""Two-tower retrieval: a user's state and a product as unit vectors whose product tells what is bought next.

With :mod:`models.retrieval.sequence` the only module that imports torch.

A batch is some shopping trips. The user tower runs once a trip, on the state strictly before it, and every product
of the trip is a positive. Negatives are shared by the batch: half drawn from its own positives, half from the whole
catalogue (mixed negative sampling: Yang et al., WWW 2020), each corrected by its log probability of being drawn
(logQ: Yi et al., RecSys 2019).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.log import get_logger
from models.encoder import RECENT_DECAY, UNIT_FLOOR, Float32s, UserEncoder
from models.evaluation.metrics import PAD, Ints
from models.interactions import Dataset
from models.trips import Trips, shopping_trips

logger = get_logger("models")

ITEM_SIDES = ("department", "category", "brand")
THREADS = 1  # beside other work a second thread waits more than it helps; fixed, so that every bit is repeatable
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """What decides the result, with the seed; the budget is in examples, never in seconds, so it is repeatable."""

    dim: int = 64
    hidden: int = 128
    n_recent: int = 20
    trips_per_batch: int = 512
    negatives: int = 1024
    temperature: float = 0.12
    learning_rate: float = 0.003
    row_learning_rate: float = 0.02
    passes: int = 2  # a third makes first purchases harder to find (docs/models.md)
    least_steps: int = 200  # small data take more passes
    examples: int = 20_000_000  # at most, whatever the passes
    example_half_life_days: float = 120.0
    repeat_weight: float = 0.3
    seed: int = 7


class ItemTower(nn.Module):
    """Sum of a product's own row and the rows of its sides, scaled to length one.

    Own rows are outside autograd: only those in the batch get a gradient, and a row-wise Adagrad moves them.
    """

    sides: Tensor
    own: Tensor
    moved: Tensor

    def __init__(self, sides: Tensor, n_side_values: int, config: TowerConfig) -> None:
        super().__init__()
        self.register_buffer("sides", sides)
        self.register_buffer("own", torch.zeros(len(sides), config.dim))
        self.register_buffer("moved", torch.zeros(len(sides)))
        self.side = nn.Parameter(torch.randn(n_side_values, config.dim) / config.dim**0.5)
        self.rate = config.row_learning_rate

    def forward(self, items: Tensor, own: Tensor | None = None) -> Tensor:
        rows = self.own[items] if own is None else own
        return functional.normalize(rows + self.side[self.sides[items]].sum(1), dim=-1, eps=UNIT_FLOOR)

    @torch.no_grad()
    def move(self, items: Tensor, gradient: Tensor) -> None:
        """Row-wise Adagrad on distinct rows."""
        self.moved[items] += gradient.square().mean(1)
        self.own[items] -= self.rate * gradient / (self.moved[items].sqrt() + 1e-8)[:, None]


class UserTower(nn.Module):
    """Own row plus the mean of recent products plus two layers over both and the traits, scaled to length one."""

    traits: Tensor
    decay: Tensor

    def __init__(self, n_users: int, traits: Tensor, n_trait_values: int, config: TowerConfig) -> None:
        super().__init__()
        self.register_buffer("traits", traits)
        self.register_buffer("decay", RECENT_DECAY ** torch.arange(config.n_recent))
        self.user = nn.Parameter(torch.zeros(n_users + 1, config.dim))
        self.trait = nn.Parameter(torch.randn(n_trait_values, config.dim) * 0.1)
        self.hidden = nn.Linear(3 * config.dim, config.hidden)
        self.out = nn.Linear(config.hidden, config.dim)

    def forward(self, users: Tensor, recent: Tensor, present: Tensor) -> Tensor:
        """Unit vectors (n, dim) of users (n,) whose recent products (n, n_recent, dim) are ``present``."""
        weights = present * self.decay
        weights = weights / weights.sum(1, keepdim=True).clamp_min(UNIT_FLOOR)
        state = torch.einsum("qr,qre->qe", weights, recent)
        who = self.user[users + 1]
        known = self.trait[self.traits[users + 1]].sum(1)
        inner = functional.relu(self.hidden(torch.cat([who, known, state], 1)))
        return functional.normalize(who + state + self.out(inner), dim=-1, eps=UNIT_FLOOR)


def sampled_softmax(
    users: Tensor,
    positives: Tensor,
    trip: Tensor,
    negatives: Tensor,
    hidden: Tensor,
    log_q: tuple[Tensor, Tensor],
    temperature: float,
) -> Tensor:
    """Negative log-likelihood of each positive among itself and the shared negatives, nats.

    Parameters
    ----------
    users : (n_trips, dim)
    positives : (n_positives, dim)
    trip : (n_positives,)
        Row of ``users`` each positive belongs to.
    negatives : (n_negatives, dim)
    hidden : (n_trips, n_negatives) bool
        Negatives that the trip did hold: no negatives for it.
    log_q : (n_positives,), (n_negatives,)
        Log of how often each product is expected among the negatives.

    Returns
    -------
    (n_positives,)
    """
    against = users @ negatives.T / temperature - log_q[1]
    rest = torch.logsumexp(against.masked_fill(hidden, -torch.inf), 1)
    own = (users[trip] * positives).sum(1) / temperature - log_q[0]
    return torch.logaddexp(own, rest[trip]) - own


@dataclass(frozen=True)
class Batch:
    """Some trips and the distinct products they touch, all as places in ``items``."""

    users: Ints
    items: Ints
    recent: Ints
    positives: Ints
    trip: Ints
    negatives: Ints
    hidden: npt.NDArray[np.bool_]
    weights: Float32s


class Sampler:
    """Draws batches; an epoch's order depends on the seed and the epoch alone, so training resumes exactly."""

    def __init__(self, trips: Trips, n_items: int, config: TowerConfig) -> None:
        self.trips, self.n_items, self.config = trips, n_items, config
        popularity = np.bincount(trips.items, minlength=n_items) / max(len(trips.items), 1)
        expected = config.negatives * (0.5 * popularity + 0.5 / n_items)
        self.log_q = np.log(expected).astype(np.float32)
        age_days = (trips.at_ms.max() - trips.at_ms) / 86_400_000
        recency = np.exp2(-age_days / config.example_half_life_days)
        novelty = np.where(trips.is_first, 1.0, config.repeat_weight)
        self.weight = (np.repeat(recency, np.diff(trips.bounds)) * novelty).astype(np.float32)
        self._place = np.full(n_items, PAD, np.int32)

    def epoch(self, number: int) -> Iterator[Batch]:
        generator = np.random.default_rng([self.config.seed, number])
        order = generator.permutation(len(self.trips))
        for start in range(0, len(order), self.config.trips_per_batch):
            yield self._batch(order[start : start + self.config.trips_per_batch], generator)

    def _batch(self, rows: npt.NDArray[np.int64], generator: np.random.Generator) -> Batch:
        trips, half = self.trips, self.config.negatives // 2
        lengths = trips.bounds[rows + 1] - trips.bounds[rows]
        trip = np.repeat(np.arange(len(rows)), lengths).astype(np.int32)
        first = np.cumsum(lengths) - lengths
        lines = np.repeat(trips.bounds[rows] - first, lengths) + np.arange(lengths.sum())
        positives = trips.items[lines]
        drawn = np.unique(
            np.concatenate(
                [generator.choice(positives, half), generator.integers(0, self.n_items, half, dtype=np.int32)]
            )
        )
        recent = trips.recent[rows]
        items = np.unique(np.concatenate([positives, drawn, recent[recent != PAD]]))
        place = self._place
        place[drawn] = np.arange(len(drawn))
        held = place[positives]
        hidden = np.zeros((len(rows), len(drawn)), bool)
        hidden[trip[held != PAD], held[held != PAD]] = True
        place[drawn] = PAD
        place[items] = np.arange(len(items))
        batch = Batch(
            trips.user[rows],
            items,
            np.where(recent == PAD, PAD, place[np.maximum(recent, 0)]),
            place[positives],
            trip,
            place[drawn],
            hidden,
            self.weight[lines],
        )
        place[items] = PAD
        return batch


class Trainer:
    """Steps, checkpoints and exports one pair of towers."""

    def __init__(self, data: Dataset, config: TowerConfig, device: str | None = None) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(THREADS)
        self.config = config
        self.device = device or pick_device()
        self.trips = shopping_trips(data.bought, config.n_recent)
        self.sampler = Sampler(self.trips, len(data.items), config)
        sides, n_sides = _rows(np.stack([data.items.codes[name] for name in ITEM_SIDES], 1))
        traits, n_traits = _rows(np.pad(data.users.traits, ((1, 0), (0, 0))))
        self.items = ItemTower(torch.from_numpy(sides), n_sides, config).to(self.device)
        self.users = UserTower(len(data.users.ids), torch.from_numpy(traits), n_traits, config).to(self.device)
        self.log_q = torch.from_numpy(self.sampler.log_q).to(self.device)
        self.optimiser = torch.optim.Adam([*self.items.parameters(), *self.users.parameters()], config.learning_rate)
        self.epochs_done = 0

    @property
    def epochs(self) -> int:
        """Passes over the purchases, at least one."""
        batches = -(-len(self.trips) // self.config.trips_per_batch)
        wanted = max(self.config.passes, -(-self.config.least_steps // max(batches, 1)))
        return max(1, min(wanted, self.config.examples // max(len(self.trips.items), 1)))

    def fit(self, checkpoint: Path | None = None, progress: Progress = lambda done, total: None) -> "Trainer":
        """Train what is left of the budget, resuming from the checkpoint if it is of this very training."""
        if checkpoint is not None:
            self._resume(checkpoint)
        for epoch in range(self.epochs_done, self.epochs):
            loss = np.mean([self.step(batch) for batch in self.sampler.epoch(epoch)])
            self.epochs_done = epoch + 1
            logger.debug("epoch", number=self.epochs_done, of=self.epochs, loss=float(loss))
            if checkpoint is not None:
                self._save(checkpoint)
            progress(self.epochs_done, self.epochs)
        return self

    def step(self, batch: Batch) -> float:
        """Move the towers once; the batch's mean loss, nats."""
        to = self._tensor
        items = to(batch.items)
        own = self.items.own[items].requires_grad_()
        vectors = self.items(items, own)
        recent = to(batch.recent)
        users = self.users(to(batch.users), vectors[recent.clamp_min(0)], (recent != PAD).float())
        positives, negatives = to(batch.positives), to(batch.negatives)
        losses = sampled_softmax(
            users,
            vectors[positives],
            to(batch.trip),
            vectors[negatives],
            to(batch.hidden),
            (self.log_q[items[positives]], self.log_q[items[negatives]]),
            self.config.temperature,
        )
        weights = to(batch.weights)
        loss = (losses * weights).sum() / weights.sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        assert own.grad is not None
        self.items.move(items, own.grad)
        return float(loss.detach())

    @torch.no_grad()
    def export(self) -> UserEncoder:
        """The towers as arrays: every item's vector, and what the user tower needs."""
        every = torch.arange(len(self.items.own), device=self.device)
        vectors = torch.cat([self.items(part) for part in torch.split(every, 8192)])
        users = self.users
        return UserEncoder(
            items=_numpy(vectors),
            user=_numpy(users.user),
            traits=_numpy(users.traits).astype(np.int32),
            trait=_numpy(users.trait),
            hidden=_numpy(users.hidden.weight.T),
            hidden_bias=_numpy(users.hidden.bias),
            out=_numpy(users.out.weight.T),
            out_bias=_numpy(users.out.bias),
        )

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self.device)
        return tensor.long() if tensor.dtype == torch.int32 else tensor

    def _fingerprint(self) -> str:
        digest = sha256(repr(asdict(self.config)).encode())
        for array in (self.trips.user, self.trips.at_ms, self.trips.items):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _save(self, checkpoint: Path) -> None:
        state = {
            "training": self._fingerprint(),
            "epochs_done": self.epochs_done,
            "items": self.items.state_dict(),
            "users": self.users.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        if not checkpoint.exists():
            return
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        if state["training"] != self._fingerprint():
            return
        self.items.load_state_dict(state["items"])
        self.users.load_state_dict(state["users"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epochs_done = state["epochs_done"]


def pick_device() -> str:
    """Use a GPU if there is one, and say which it is."""
    if not torch.cuda.is_available():
        logger.info("training_on_cpu", reason="no GPU")
        return "cpu"
    logger.info("training_on_gpu", device=torch.cuda.get_device_name(0))
    return "cuda"


def _rows(codes: Ints) -> tuple[npt.NDArray[np.int64], int]:
    """Give every column its own stretch of rows in one table; its length, at least one."""
    widths = codes.max(0) + 1 if codes.size else np.zeros(codes.shape[1], int)
    offsets = np.cumsum(widths) - widths
    return (codes + offsets).astype(np.int64), max(1, int(widths.sum()))


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
