"""Sources of what is like the items that a request is about or, where there are none, like what the user had lately."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.item_texts import ItemTexts
from models.neighbour_table import NeighbourTable
from serving.ports import Floats, Index, Ints, UserState

DECAY = 0.9
"""Weight of an item in the profile relative to the one that the user had next."""
LAST = 5
"""Recent items whose neighbours are proposed."""


def profile(user: UserState) -> tuple[Ints, Floats]:
    """Items (n,) and what each counts (n,): those that the request is about alike, else the recent ones, fading."""
    if len(user.about):
        return user.about, np.ones(len(user.about), np.float32)
    return user.recent, np.power(DECAY, np.arange(len(user.recent))).astype(np.float32)


@dataclass(frozen=True)
class ItemToItem:
    """What the same users had as the profile's items, most alike to all of it first (Sarwar and others, WWW 2001)."""

    table: NeighbourTable
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        return self.table.about(*profile(user), n)


@dataclass(frozen=True)
class Content:
    """What is called and shelved like the profile's items, whether or not anybody has had it yet."""

    texts: ItemTexts
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        return self.texts.about(*profile(user), n)


@dataclass(frozen=True)
class RecentNeighbours:
    """The towers' nearest to each of the last few items, in turn.

    An average of many interests, as the user's vector is one, may lie near none of them; here each has its own.
    """

    vectors: Floats
    index: Index
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        items = profile(user)[0][:LAST]
        if not len(items) or n <= 0:
            return np.empty(0, np.int32)
        near = self.index.search(self.vectors[items], n + len(items))  # int32 (n_last, n + n_last)
        in_turn = near.T.ravel()
        in_turn = in_turn[(in_turn >= 0) & ~np.isin(in_turn, items)]
        first = np.sort(np.unique(in_turn, return_index=True)[1])
        return np.asarray(in_turn[first][:n], np.int32)
