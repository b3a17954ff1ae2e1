"""Where candidates come from, and how their proposals become one list."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from serving.ports import Encoder, Index, Ints, Source, UserState

RRF = 60.0
"""Reciprocal rank fusion's constant: Cormack, Clarke and Buettcher, SIGIR 2009."""


@dataclass(frozen=True)
class TwoTower:
    """Items nearest to the user's vector; nothing for a user without number or history.

    What the request is about counts as had just now.
    """

    waits: ClassVar[bool] = False
    encoder: Encoder
    index: Index

    def propose(self, user: UserState, n: int) -> Ints:
        recent, age_ms = user.lately
        if user.user < 0 and not len(recent):
            return recent
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


class Drawing(ABC):
    """A source that draws what it proposes."""

    @abstractmethod
    def chance(self, n: int) -> float:
        """How likely each item that it may propose is to be among the n that it proposes."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Distinct items (n,); ``proposed`` bool (n, n_sources) in the order of ``names``; ``fused`` float32 (n,).

    ``chances`` are of sources that draw: how likely each of a source's items was to be drawn.
    """

    items: Ints
    proposed: NDArray[np.bool_]
    fused: NDArray[np.float32]
    names: tuple[str, ...]
    chances: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def of(self, rows: NDArray[np.intp]) -> list[tuple[str, ...]]:
        """Sources that proposed each of some items."""
        codes = (self.proposed[rows] @ (1 << np.arange(len(self.names)))).tolist()  # few are distinct
        told = {code: tuple(name for at, name in enumerate(self.names) if code >> at & 1) for code in {*codes}}
        return [told[code] for code in codes]

    def of_any(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Which items at least one of these sources proposed (n,)."""
        asked = np.array([name in names for name in self.names], np.bool_)
        return np.asarray(self.proposed[:, asked].any(1))

    def drawn(self, rows: NDArray[np.intp]) -> list[float]:
        """Probability that each of some items is a candidate: 1 unless only sources that draw proposed it."""
        if not self.chances:
            return [1.0] * len(rows)
        missed = [[1.0 - self.chances.get(name, 1.0) for name in names] for names in self.of(rows)]
        return [1.0 - prod(each) if each else 1.0 for each in missed]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Candidates":
        """Some of them, in the order of ``rows``."""
        return Candidates(self.items[rows], self.proposed[rows], self.fused[rows], self.names, self.chances)


def blend(
    proposals: Mapping[str, Ints],
    weights: Mapping[str, float] | None = None,
    chances: Mapping[str, float] | None = None,
) -> Candidates:
    """Every proposed item once, in order of first proposal.

    ``fused`` adds weight / (60 + place) over the sources, whose weight is 1 where none is given.
    """
    names = tuple(proposals)
    if len(names) == 1 and len(set((alone := proposals[names[0]]).tolist())) == len(alone):
        fused = _by_place(names[0], len(alone), weights)
        return Candidates(alone, np.ones((len(alone), 1), np.bool_), fused, names, chances or {})
    flat = np.concatenate([np.empty(0, np.int32), *proposals.values()]).astype(np.int32)
    items, first, row = np.unique(flat, return_index=True, return_inverse=True)
    proposed = np.zeros((len(items), len(names)), np.bool_)
    fused = np.zeros(len(items), np.float32)
    start = 0
    for column, (name, proposal) in enumerate(proposals.items()):
        rows = row[start : start + len(proposal)]
        proposed[rows, column] = True
        fused[rows] += _by_place(name, len(proposal), weights)
        start += len(proposal)
    order = np.argsort(first)
    return Candidates(items[order], proposed[order], fused[order], names, chances or {})


def _by_place(source: str, n: int, weights: Mapping[str, float] | None) -> NDArray[np.float32]:
    """What a source's proposals are worth by their places, float32 (n,)."""
    return ((weights or {}).get(source, 1.0) / (RRF + 1 + np.arange(n))).astype(np.float32)


def drawing_chances(sources: Mapping[str, Source], quotas: Mapping[str, int]) -> dict[str, float]:
    """How likely each item of the sources that draw was to be proposed."""
    asked = {name: (sources[name], n) for name, n in quotas.items()}
    return {name: source.chance(n) for name, (source, n) in asked.items() if isinstance(source, Drawing)}


def absent(items: Ints, *unwanted: Sequence[int] | Ints) -> NDArray[np.bool_]:
    """True where an item is in none of the unwanted lists, bool (n,)."""
    keep = np.ones(len(items), np.bool_)
    for each in unwanted:
        if len(each):
            keep &= ~np.isin(items, each)
    return keep
