"""Sources for users and items of whom little is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from headwater.plan import DAY_MS
from serving.ports import Column, Floats, Ints, Times, UserState
from serving.sources import Drawing


@dataclass(frozen=True)
class InSegment:
    """What users of the same segment buy, best first; everyone's where the segment is unknown or has no list.

    The segment is the one that the request tells, else that of ``of_user`` (n_users,), empty where it is not known.
    """

    by_segment: Mapping[str, Ints]
    everyone: Ints
    of_user: Column = field(repr=False)
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        segment = user.segment or (self.of_user[user.user] if user.user >= 0 else "")
        return self.by_segment.get(segment, self.everyone)[:n]


@dataclass(frozen=True)
class NewItems:
    """Items first seen within so many days, the newest first, equal ones by popularity, then by number.

    The most popular first would be what sells already; what nobody has bought yet would never come.
    """

    first_seen: Times = field(repr=False)
    popularity: Floats = field(repr=False)
    days: int
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        new = np.flatnonzero((self.first_seen > user.now_ms - self.days * DAY_MS) & (self.first_seen <= user.now_ms))
        order = np.lexsort((-self.popularity[new], -self.first_seen[new]))
        return np.asarray(new[order][:n], np.int32)


@dataclass(frozen=True)
class Exploration(Drawing):
    """A draw among items with little exposure (n_pool,), each with the same chance.

    The draw follows from the user's seed, which is the request's and no other draw's.
    """

    pool: Ints
    waits: ClassVar[bool] = False

    def propose(self, user: UserState, n: int) -> Ints:
        drawn = np.random.default_rng(user.seed).choice(self.pool, min(max(n, 0), len(self.pool)), replace=False)
        return drawn.astype(np.int32)

    def chance(self, n: int) -> float:
        return min(n / len(self.pool), 1.0) if len(self.pool) else 1.0


def little_shown(popularity: Floats, first_seen: Times, since_ms: int) -> Ints:
    """Items worth trying: bought lately, but by no more than the median of those that were, or first seen since."""
    bought = popularity > 0
    seldom = bought & (popularity <= np.median(popularity[bought])) if bought.any() else bought
    return np.flatnonzero(seldom | (first_seen >= since_ms)).astype(np.int32)
