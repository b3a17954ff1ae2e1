"""Where candidates come from, and how their proposals become one list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from serving.ports import Encoder, Index, Ints, UserState

RRF = 60.0
"""Reciprocal rank fusion's constant: Cormack, Clarke and Buettcher, SIGIR 2009."""


@dataclass(frozen=True)
class TwoTower:
    """Items nearest to the user's vector; nothing for a user without number or history."""

    waits: ClassVar[bool] = False
    encoder: Encoder
    index: Index

    def propose(self, user: UserState, n: int) -> Ints:
        if user.user < 0 and not len(user.recent):
            return user.recent
        recent, age_ms = user.recent, user.recent_age_ms
        if not len(recent):
            recent, age_ms = np.full(1, -1, np.int32), np.zeros(1, np.int64)
        vector = self.encoder.encode(np.array([user.user], np.int32), recent[None, :], age_ms[None, :])
        near: Ints = self.index.search(vector, n)[0]
        return near[near >= 0]


@dataclass(frozen=True)
class BuyItAgain:
    """The user's own items, strongest habit first."""

    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        return user.own[:n]


@dataclass(frozen=True)
class Fixed:
    """The same for everyone, best first: popular, trending."""

    waits: ClassVar[bool] = False
    items: Ints

    def propose(self, user: UserState, n: int) -> Ints:
        return self.items[:n]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Distinct items (n,); ``proposed`` bool (n, n_sources) in the order of ``names``; ``fused`` float32 (n,)."""

    items: Ints
    proposed: NDArray[np.bool_]
    fused: NDArray[np.float32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    def of(self, row: int) -> tuple[str, ...]:
        """Sources that proposed the item."""
        return tuple(name for name, here in zip(self.names, self.proposed[row], strict=True) if here)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Candidates":
        """Some of them, in the order of ``rows``."""
        return Candidates(self.items[rows], self.proposed[rows], self.fused[rows], self.names)


def blend(proposals: Mapping[str, Ints]) -> Candidates:
    """Every proposed item once, in order of first proposal; ``fused`` adds 1 / (60 + place) over the sources."""
    names = tuple(proposals)
    flat = np.concatenate([np.empty(0, np.int32), *proposals.values()]).astype(np.int32)
    items, first, row = np.unique(flat, return_index=True, return_inverse=True)
    proposed = np.zeros((len(items), len(names)), np.bool_)
    fused = np.zeros(len(items), np.float32)
    start = 0
    for column, proposal in enumerate(proposals.values()):
        rows = row[start : start + len(proposal)]
        proposed[rows, column] = True
        fused[rows] += (1.0 / (RRF + 1 + np.arange(len(proposal)))).astype(np.float32)
        start += len(proposal)
    order = np.argsort(first)
    return Candidates(items[order], proposed[order], fused[order], names)


def absent(items: Ints, *unwanted: Sequence[int] | Ints) -> NDArray[np.bool_]:
    """True where an item is in none of the unwanted lists, bool (n,)."""
    keep = np.ones(len(items), np.bool_)
    for each in unwanted:
        if len(each):
            keep &= ~np.isin(items, each)
    return keep
