"""Tables of which a step reads and moves some rows, so that its cost does not depend on their number."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


class Rows(nn.Module):
    """Rows looked up by number, outside autograd but for those of the batch; a row-wise Adagrad moves them.

    Adagrad of Duchi and others (JMLR 2011) with one accumulator a row, the mean of its squared gradients.
    """

    rows: Tensor
    moved: Tensor

    def __init__(self, rows: Tensor, rate: float) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("moved", torch.zeros(len(rows)))
        self.rate = rate
        self._touched: tuple[Tensor, Tensor] | None = None

    def forward(self, numbers: Tensor, weights: Tensor | None = None) -> Tensor:
        """Rows of ``numbers`` (n,), or weighted sums of the rows of ``numbers`` (n, k): (n, dim).

        With gradients on, once a step.
        """
        if not torch.is_grad_enabled():
            return _looked_up(self.rows, numbers, weights)
        distinct, place = torch.unique(numbers, return_inverse=True)
        leaf = self.rows[distinct].requires_grad_()
        self._touched = distinct, leaf
        return _looked_up(leaf, place, weights)

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows that were looked up since the last step; over all processes where there are several."""
        if self._touched is None or self._touched[1].grad is None:
            return
        numbers, gradient = self._touched[0], self._touched[1].grad
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            numbers, gradient = _mean_over_processes(numbers, gradient)
        self.moved[numbers] += gradient.square().mean(1)
        self.rows[numbers] -= self.rate * gradient / (self.moved[numbers].sqrt() + 1e-8)[:, None]
        self._touched = None


def _looked_up(rows: Tensor, numbers: Tensor, weights: Tensor | None) -> Tensor:
    if numbers.dim() == 1:
        return functional.embedding(numbers, rows)
    if not numbers.shape[1]:
        return rows.new_zeros(len(numbers), rows.shape[1])
    return functional.embedding_bag(numbers, rows, mode="sum", per_sample_weights=weights)


def _mean_over_processes(numbers: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows that any process looked up, and the mean of their gradients, zero where one has none."""
    world = distributed.get_world_size()
    held: list[tuple[Tensor, Tensor] | None] = [None] * world
    distributed.all_gather_object(held, (numbers.cpu(), gradient.cpu()))
    parts = [part for part in held if part is not None]
    every, place = torch.unique(torch.cat([part[0] for part in parts]), return_inverse=True)
    total = torch.zeros(len(every), gradient.shape[1])
    total.index_add_(0, place, torch.cat([part[1] for part in parts]))
    return every.to(numbers.device), (total / world).to(gradient.device)
