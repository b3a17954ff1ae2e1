"""The item tower."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import UNIT_FLOOR
from models.tower_config import TowerConfig
from models.two_tower.content import Content
from models.two_tower.rows import Rows


class ItemTower(nn.Module):
    """Sum of a product's own row and of what its content tells, scaled to length one."""

    described: Tensor
    numbers: Tensor

    def __init__(self, content: Content, config: TowerConfig) -> None:
        super().__init__()
        self.n_items = len(content.rows)
        self.register_buffer("described", torch.from_numpy(content.rows + 1))  # row 0 is for what is missing
        self.register_buffer("numbers", torch.from_numpy(content.numbers))
        self.n_averaged = content.n_averaged
        n_own = self.n_items if "own" in config.item_inputs else 0
        self.own = Rows(torch.zeros(n_own, config.dim), config.row_learning_rate)
        drawn = torch.randn(content.n_rows + 1, config.dim) / config.dim**0.5
        self.content = Rows(drawn, config.row_learning_rate)
        self.number = nn.Linear(self.numbers.shape[1], config.dim, bias=False) if self.numbers.shape[1] else None

    def forward(self, items: Tensor) -> Tensor:
        """Unit vectors (n, dim) of items (n,)."""
        rows = self.described[items].long()  # (n, n_inputs)
        told = self.content(rows, self._shares(rows))
        if len(self.own.rows):
            told = told + self.own(items)
        if self.number is not None:
            told = told + self.number(self.numbers[items])
        return functional.normalize(told.float(), dim=-1, eps=UNIT_FLOOR)

    def _shares(self, rows: Tensor) -> Tensor:
        """Weight of each row: 1, for words one over their number, 0 for what is missing."""
        present = (rows > 0).float()
        if not self.n_averaged:
            return present
        words = present[:, -self.n_averaged :]
        mean = words / words.sum(1, keepdim=True).clamp_min(1)
        return torch.cat([present[:, : -self.n_averaged], mean], 1)
