"""What a log tells of a user, of an item and of the two together: what trees weigh beside the scores of models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import Ints
from models.interactions import Interactions

Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
HALF_LIVES = (0.01, 0.05, 0.2)
"""Of the log's length in time, after which what a user did counts half."""
DECAYS = (0.9, 0.98)
"""Of what a user did, relative to the user's next interaction."""
RECENT = (0.02, 0.1)
"""Shares of the log, its newest, of which an item's part is told."""


class Facts:
    """Features of (user, item) pairs as of the end of a log; NaN where there is nothing to tell.

    Parameters
    ----------
    log
    codes : each (n_items,)
        Numbers from 0 of what items have in common, such as their category.
    """

    def __init__(self, log: Interactions, codes: Mapping[str, Ints]) -> None:
        self._n_items = log.n_items
        end = int(log.at_ms[-1]) + 1 if len(log) else 1
        span = max(end - int(log.at_ms[0]), 1) if len(log) else 1
        order = np.argsort(log.user, kind="stable")
        sizes = np.bincount(log.user, minlength=log.n_users)
        places_since = np.empty(len(log), np.int64)  # how many interactions of the same user came after
        places_since[order] = (np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(log))) if len(log) else 0
        age = (end - log.at_ms) / span
        keys = log.user.astype(np.int64) * log.n_items + log.item
        self._keys, first, pair = np.unique(keys, return_index=True, return_inverse=True)
        self._users = _users(log, age, sizes, self._keys)
        self._pairs = _pairs(log, age, places_since, first, pair, self._users)
        self._items = _items(log, age, self._keys)
        self._codes = {name: _Shares(log, code, age) for name, code in codes.items()}

    def of(self, user: Ints, item: Ints) -> dict[str, Floats]:
        """Features by name, each (n,), of n pairs."""
        keys = user.astype(np.int64) * self._n_items + item
        at, known = _places(self._keys, keys)
        found = {f"pair_{name}": _taken(values, at, known) for name, values in self._pairs.items()}
        found |= {f"item_{name}": values[item] for name, values in self._items.items()}
        found |= {f"user_{name}": values[user] for name, values in self._users.items()}
        for name, shares in self._codes.items():
            found |= {f"{name}_{told}": values for told, values in shares.of(user, item).items()}
        return found


class _Shares:
    """How much of what a user did was with items of the same kind, and when last."""

    def __init__(self, log: Interactions, code: Ints, age: Floats) -> None:
        self._code, self._n = code, int(code.max(initial=0)) + 1
        keys = log.user.astype(np.int64) * self._n + code[log.item]
        self._keys, pair = np.unique(keys, return_inverse=True)
        self._counts = np.bincount(pair).astype(np.float64)
        self._faded = np.bincount(pair, np.exp2(-age / HALF_LIVES[1])).astype(np.float64)
        self._last = np.full(len(self._keys), np.inf)
        np.minimum.at(self._last, pair, age)
        self._of_user = np.maximum(np.bincount(log.user, minlength=log.n_users), 1)

    def of(self, user: Ints, item: Ints) -> dict[str, Floats]:
        keys = user.astype(np.int64) * self._n + self._code[item]
        at, known = _places(self._keys, keys)
        return {
            "share": _taken(self._counts, at, known) / self._of_user[user],
            "faded": _taken(self._faded, at, known), "since": _taken(self._last, at, known),
        }  # fmt: skip


def _users(log: Interactions, age: Floats, sizes: Any, keys: Longs) -> dict[str, Floats]:
    last = np.full(log.n_users, np.nan)
    last[log.user] = age  # of several assignments to a place the last stays
    distinct = np.bincount(keys // log.n_items, minlength=log.n_users)
    return {
        "count": sizes.astype(np.float64), "since": last, "new_share": distinct / np.maximum(sizes, 1),
    }  # fmt: skip


def _pairs(
    log: Interactions, age: Floats, places_since: Longs, first: Any, pair: Any, users: Mapping[str, Floats]
) -> dict[str, Floats]:
    n = len(first)
    counts = np.bincount(pair, minlength=n).astype(np.float64)
    last = np.full(n, 0)
    last[pair] = np.arange(len(log))
    user = log.user[last]
    since, oldest = age[last], age[first]
    with np.errstate(divide="ignore", invalid="ignore"):
        period = np.where(counts > 1, (oldest - since) / (counts - 1), np.nan)
        due = np.where(period > 0, since / period, np.nan)
    found = {
        "count": counts, "share": counts / users["count"][user], "since": since,
        "since_of_user": since - users["since"][user], "places_since": places_since[last].astype(np.float64),
        "period": period, "due": due,
    }  # fmt: skip
    for half_life in HALF_LIVES:
        found[f"faded_{half_life}"] = np.bincount(pair, np.exp2(-age / half_life), n)
    for decay in DECAYS:
        found[f"faded_by_{decay}"] = np.bincount(pair, decay ** places_since.astype(np.float64), n)
    return found


def _items(log: Interactions, age: Floats, keys: Longs) -> dict[str, Floats]:
    n = log.n_items
    counts = np.bincount(log.item, minlength=n).astype(np.float64)
    users = np.bincount(keys % n, minlength=n)
    first, last = np.full(n, np.nan), np.full(n, np.nan)
    first[log.item[::-1]] = age[::-1]
    last[log.item] = age
    with np.errstate(invalid="ignore"):
        found = {
            "count": counts,
            "again": 1 - users / np.where(counts > 0, counts, np.nan),
            "age": first,
            "since": last,
        }
    for share in RECENT:
        newest = log.item[len(log) - int(len(log) * share) :]
        found[f"recent_{share}"] = np.bincount(newest, minlength=n) / (share * np.maximum(counts, 1))
    return found


def _places(held: Longs, keys: Longs) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each key is among those held, which ascend, and whether it is there at all."""
    at = np.searchsorted(held, keys)
    known = at < len(held)
    known[known] = held[at[known]] == keys[known]
    return at, known


def _taken(values: Floats, at: Any, known: Any) -> Floats:
    found = np.full(len(at), np.nan)
    found[known] = values[at[known]]
    return found
