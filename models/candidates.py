"""Candidates for past instants, drawn as serving draws them: the same sources, quotas and order, many at once.

The ranker learns on these; ``tests/models/test_candidates.py`` holds them to a slow version, one request at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.plan import DAY_MS
from models.evaluation.metrics import PAD, Ints
from models.interactions import Interactions
from models.retriever import Retriever
from models.trends import best_first, popularity, trending
from models.trips import last_distinct

SOURCES: Mapping[str, int] = {"buy_it_again": 120, "two_tower": 100, "popular": 40, "trending": 20}
"""How many candidates each source may propose, as the surface ``home`` in serving/surfaces.toml."""

HABIT_HALF_LIFE_DAYS = 90
HABIT_DAYS = 360
CHUNK = 1_000

Instants = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """Long form, by query, then item: each candidate of a query once.

    Attributes
    ----------
    query, item : (n,) int32
    proposed : (n, n_sources) bool
        In the order of ``SOURCES``.
    score : (n,) float32
        Inner product of the query's and the item's vector, whichever source proposed it.
    """

    query: Ints
    item: Ints
    proposed: npt.NDArray[np.bool_]
    score: Float32s

    def __len__(self) -> int:
        return len(self.query)


def draw(retriever: Retriever, bought: Interactions, users: Ints, at_ms: Instants) -> Candidates:
    """Candidates of each (user, instant), from what was bought strictly before it.

    Parameters
    ----------
    bought
        In the retriever's numbering; later purchases may be in it, they are not looked at.
    users, at_ms : (n_queries,)
    """
    history = _ByUser(bought)
    parts = [
        _draw_chunk(retriever, bought, history, users[rows], at_ms[rows], rows)
        for start in range(0, len(users), CHUNK)
        for rows in [np.arange(start, min(start + CHUNK, len(users)))]
    ]
    return Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _draw_chunk(
    retriever: Retriever, bought: Interactions, history: "_ByUser", users: Ints, at_ms: Instants, rows: Instants
) -> tuple[Ints, Ints, npt.NDArray[np.bool_], Float32s]:
    n_items, n_recent = bought.n_items, retriever.provenance.n_recent
    pasts = list(history.before(users, at_ms))
    lately = [
        last_distinct(items, bought_ms, now, n_recent)
        for (items, bought_ms), now in zip(pasts, at_ms.tolist(), strict=True)
    ]
    recent, age_ms = (np.stack(column) for column in zip(*lately, strict=True))  # int32, int64 (n, n_recent)
    vectors = retriever.encoder.encode(users, recent, age_ms)  # float32 (n, dim)
    nearest, _ = retriever.index.nearest(vectors, SOURCES["two_tower"])  # int32 (n, n_nearest)
    everyone = _of_the_day(bought, at_ms)
    proposals = {
        "buy_it_again": [
            habits(items, at, now)[: SOURCES["buy_it_again"]]
            for (items, at), now in zip(pasts, at_ms.tolist(), strict=True)
        ],
        "two_tower": [near[near != PAD] for near in nearest],
        "popular": [everyone[now // DAY_MS][0] for now in at_ms.tolist()],
        "trending": [everyone[now // DAY_MS][1] for now in at_ms.tolist()],
    }
    keys = [_keys(proposals[name], n_items) for name in SOURCES]
    union = np.unique(np.concatenate(keys))
    proposed = np.stack([np.isin(union, key) for key in keys], 1)
    query, item = (union // n_items).astype(np.int32), (union % n_items).astype(np.int32)
    score = np.einsum("qe,qe->q", vectors[query], retriever.encoder.items[item]).astype(np.float32)
    return rows[query].astype(np.int32), item, proposed, score


def habits(items: Ints, at_ms: Instants, now_ms: int) -> Ints:
    """Distinct items by decayed count, then id; ages in whole days, as the feature of that name counts them."""
    age = now_ms // DAY_MS - at_ms // DAY_MS
    weight = np.where(age <= HABIT_DAYS, np.exp2(-age / HABIT_HALF_LIFE_DAYS), 0.0)
    own, place = np.unique(items, return_inverse=True)
    strength = np.bincount(place, weight, minlength=len(own))
    return np.asarray(own[np.lexsort((own, -strength))], np.int32)


@dataclass(frozen=True)
class _ByUser:
    """Purchases of each user, newest first."""

    bought: Interactions

    def before(self, users: Ints, at_ms: Instants) -> Iterator[tuple[Ints, Instants]]:
        order = np.lexsort((self.bought.item, -self.bought.at_ms, self.bought.user))
        item, at = self.bought.item[order], self.bought.at_ms[order]
        bounds = np.searchsorted(self.bought.user[order], np.arange(self.bought.n_users + 1))
        for user, now in zip(users.tolist(), at_ms.tolist(), strict=True):
            low, high = (bounds[user], bounds[user + 1]) if user >= 0 else (0, 0)
            first = low + np.searchsorted(-at[low:high], -now, side="right")
            yield item[first:high], at[first:high]


def _of_the_day(bought: Interactions, at_ms: Instants) -> dict[int, tuple[Ints, Ints]]:
    """Popular and trending items of each day asked about."""
    return {
        day: (
            best_first(popularity(bought, day * DAY_MS))[: SOURCES["popular"]],
            best_first(trending(bought, day * DAY_MS))[: SOURCES["trending"]],
        )
        for day in np.unique(at_ms // DAY_MS).tolist()
    }


def _keys(lists: list[Ints], n_items: int) -> Instants:
    """Queries and items as one number each."""
    lengths = [len(each) for each in lists]
    query = np.repeat(np.arange(len(lists)), lengths)
    return np.asarray(query * n_items + np.concatenate(lists), np.int64)
