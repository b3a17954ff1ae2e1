"""The user tower."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import N_AGES, RECENT_DECAY, UNIT_FLOOR
from models.tower_config import TowerConfig
from models.two_tower.rows import Rows


class UserTower(nn.Module):
    """Own row plus what the recent products tell plus two layers over both and the traits, scaled to length one."""

    traits: Tensor
    decay: Tensor

    def __init__(self, n_users: int, traits: Tensor, n_trait_values: int, config: TowerConfig) -> None:
        super().__init__()
        self.register_buffer("traits", traits)
        self.register_buffer("decay", RECENT_DECAY ** torch.arange(config.n_recent))
        self.user = Rows(torch.zeros(n_users + 1, config.dim), config.row_learning_rate)
        self.trait = Rows(torch.randn(n_trait_values, config.dim) * 0.1, config.row_learning_rate)
        self.hidden = nn.Linear(3 * config.dim, config.hidden)
        self.out = nn.Linear(config.hidden, config.dim)
        self.sequence = RecentSequence(config) if config.user_tower == "transformer" else None

    def forward(self, users: Tensor, recent: Tensor, present: Tensor, ages: Tensor) -> Tensor:
        """Unit vectors (n, dim).

        Parameters
        ----------
        users : (n,)
            -1 for unknown ones.
        recent : (n, n_recent, dim)
            Vectors of the recent products, newest first, of which those count that are ``present`` (n, n_recent) bool.
        ages : (n, n_recent)
            How long ago each was bought, as :func:`models.encoder.age_buckets` numbers it.
        """
        weights = present * self.decay
        weights = weights / weights.sum(1, keepdim=True).clamp_min(UNIT_FLOOR)
        state = torch.einsum("qr,qre->qe", weights, recent)
        if self.sequence is not None:
            state = state + self.sequence(recent, present, ages)
        who = self.user(users + 1)
        known = self.trait(self.traits[users + 1])
        inner = functional.relu(self.hidden(torch.cat([who, known, state], 1)))
        return functional.normalize((who + state + self.out(inner)).float(), dim=-1, eps=UNIT_FLOOR)


class RecentSequence(nn.Module):
    """A causal transformer over the present and, going back from it, the recent products with their age and place.

    After SASRec (Kang and McAuley, ICDM 2018), its norms before the layers; the age is told as TiSASRec (Li, Wang and
    McAuley, WSDM 2020) tells intervals, but in logarithmic steps. Each place sees itself and what is older; the state
    is that of the present, which sees all and is there where nothing was bought yet.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.now = nn.Parameter(torch.randn(dim) * 0.1)
        self.age = nn.Parameter(torch.randn(N_AGES, dim) * 0.1)
        self.place = nn.Parameter(torch.randn(config.n_recent, dim) * 0.1)
        self.heads = config.heads
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.blocks))
        self.after = nn.LayerNorm(dim)

    def forward(self, recent: Tensor, present: Tensor, ages: Tensor) -> Tensor:
        """State (n, dim) of about length one."""
        n, length, dim = recent.shape
        told = recent + self.age[ages] + self.place[:length]
        states = torch.cat([self.now.expand(n, 1, dim), told], 1)  # (n, 1 + n_recent, dim)
        seen = _older_or_same(present)
        for block in self.blocks:
            states = block(states, seen)
        after: Tensor = self.after(states[:, 0])
        return after * float(dim**-0.5)


class Block(nn.Module):
    """Attention to what is seen, and two layers, each added to what it is given."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.joined, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        n, length, dim = states.shape
        parts = self.joined(self.before(states)).view(n, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None])
        states = states + self.out(mixed.transpose(1, 2).reshape(n, length, dim))
        added: Tensor = self.narrow(functional.relu(self.wide(self.between(states))))
        return states + added


def _older_or_same(present: Tensor) -> Tensor:
    """Which places each place sees (n, 1 + n_recent, 1 + n_recent) bool: itself, and what is present and older."""
    there = functional.pad(present.bool(), (1, 0), value=True)
    length = there.shape[1]
    older = torch.ones(length, length, dtype=torch.bool, device=there.device).triu()
    alone = torch.eye(length, dtype=torch.bool, device=there.device)
    return (older & there[:, None, :]) | alone
