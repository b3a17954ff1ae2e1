"""The world: who likes what on which day, and what any list is worth, exactly.

What happens at place j of a list, to shopper u, with product i, on day d; all draws are independent::

    looks       with e_j                                        lists.examined
    clicks      with c · σ(l)          where one looks          outcomes.click
    adds to cart with a                given a click            outcomes.cart
    buys        with p₀ + (p₁ - p₀) σ(l)   given a cart         outcomes.purchase
    l = base + affinity · cos(taste of u on d, i) + popularity · log-purchases of i + habit · log(1 + own purchases)
        + log(factor) in a trend + log(liked) of a new product,      -∞ before it has come

So what a list is worth is a sum over its places, and the best list has the most worthy products where one looks most.
Worth is counted before the day's budget, which cuts purchases (:mod:`simulation.shoppers`), and before returns, which
take back a share of purchases that is the same for all. Habits are those of the data, popularity too: what is bought in
the simulation changes neither, so that a list's worth is the same whatever was shown before.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from headwater.errors import ConfigError
from models.evaluation.metrics import PAD
from simulation.chance import Draw, chance
from simulation.config import WorldConfig
from simulation.fitted import Fitted, Floats, Ints, Texts, unit
from simulation.habits import Habits
from simulation.newcomers import new_products, new_shoppers

Measure = Literal["clicks", "purchases", "money"]
CHUNK, BLOCK = 128, 128
MOST_DAYS = 8
"""So many days' arrays are held, some megabytes each."""
SPARE = 16
"""So many products more than a list has places are compared in float64, after a first look in float32."""


@dataclass(frozen=True)
class Chances:
    """Of (user, item) pairs: a ``click`` where one looks, a ``cart`` given that, a ``purchase`` given that."""

    click: Floats
    cart: float
    purchase: Floats


@dataclass(frozen=True)
class Value:
    """What each list is expected to bring (n,): clicks, purchases, and what these cost."""

    clicks: Floats
    purchases: Floats
    money: Floats

    def of(self, measure: Measure) -> Floats:
        held: Floats = getattr(self, measure)
        return held


@dataclass(frozen=True)
class _Day:
    """What is made once a day.

    Attributes
    ----------
    tastes : (n_users, dims)
    factor : (n_items,)
        What multiplies each product's odds: trends, being new; 0 before it has come.
    shared : (n_items,)
        Log-odds without taste and habit.
    crowd : (n_items,)
        Running sum of popularity times factor.
    """

    tastes: Floats
    factor: Floats
    shared: Floats
    crowd: Floats


class World:
    """A fitted world with what comes to it in ``days`` days; more days change nothing of the first.

    Users and items are int32 numbers: those of ``fitted``, then those that come, in order of the day.

    Attributes
    ----------
    shoppers : (n,)
        Those of the data that take part.

    Raises
    ------
    ConfigError
        The data have no category of a trend, or fewer shoppers than asked for.
    """

    def __init__(self, fitted: Fitted, config: WorldConfig, days: int) -> None:
        self.fitted, self.config, self.days = fitted, config, days
        self.products, self.newcomers = new_products(fitted, config), new_shoppers(fitted, config, days)
        self.item_ids: Texts = np.concatenate([fitted.item_ids, self.products.ids])
        self.user_ids: Texts = np.concatenate([fitted.user_ids, self.newcomers.ids])
        self.vectors = np.concatenate([fitted.items, self.products.vectors])
        self.popularity = np.concatenate([fitted.popularity, self.products.popularity])
        self.price = np.concatenate([fitted.price, self.products.price])
        self.text = {name: np.concatenate([column, self.products.text[name]]) for name, column in fitted.text.items()}
        self.habits = Habits.of(fitted.own, len(self.item_ids))
        self.shoppers = _drawn(config, len(fitted.user_ids))
        self._tastes = np.concatenate([fitted.users, self.newcomers.vectors])
        self._moved = [self._tastes]  # by day, before the length is made one again
        self._held: dict[int, _Day] = {}
        self._items, self._users = pd.Index(self.item_ids), pd.Index(self.user_ids)
        self._vectors32 = self.vectors.astype(np.float32)
        self._check_trends()

    def items_of(self, ids: Texts | list[str]) -> Ints:
        """Numbers of ids, ``PAD`` for those that the world does not know."""
        return np.asarray(self._items.get_indexer(pd.Index(ids)), np.int32)

    def users_of(self, ids: Texts | list[str]) -> Ints:
        """Numbers of ids, -1 for those that the world does not know."""
        return np.asarray(self._users.get_indexer(pd.Index(ids)), np.int32)

    def present(self, day: int) -> Ints:
        """Shoppers who may come on a day (n,)."""
        new = len(self.fitted.user_ids) + np.flatnonzero(self.newcomers.day <= day)
        return np.concatenate([self.shoppers, new.astype(np.int32)])

    def factor(self, day: int) -> Floats:
        """What multiplies the odds of each product: trends, being new; 0 before it has come (n_items,)."""
        return self._day(day).factor

    def crowd(self, day: int) -> Floats:
        """Running sum of what everyone buys, to draw a product from (n_items,)."""
        return self._day(day).crowd

    def leaning(self, users: Ints, items: Ints, day: int) -> Floats:
        """Log-odds l of pairs: ``users`` (n,), ``items`` (n, k), of which ``PAD`` has -∞."""
        today, asked = self._day(day), self.config.tastes
        known = np.maximum(items, 0)
        cosine = np.einsum("ud,uid->ui", today.tastes[users], self.vectors[known])
        habit = np.log1p(self.habits.count(users[:, None], known))
        return np.where(items == PAD, -np.inf, today.shared[known] + asked.affinity * cosine + asked.habit * habit)

    def chances(self, users: Ints, items: Ints, day: int) -> Chances:
        """What each of the pairs ``users`` (n,), ``items`` (n, k) may come to (n, k)."""
        return self._chances(self.leaning(users, items, day))

    def relevance(self, users: Ints, items: Ints, day: int) -> Floats:
        """Probability of a click where one looks (n, k)."""
        return self.chances(users, items, day).click

    def value(self, users: Ints, lists: Ints, day: int) -> Value:
        """What lists (n, k) bring to ``users`` (n,) in expectation: exact, before the budget and before returns."""
        found, seen = self.chances(users, lists, day), self.examined(lists.shape[1])
        clicks = found.click * seen
        purchases = clicks * found.cart * found.purchase
        money = purchases * self.price[np.maximum(lists, 0)]
        return Value(clicks.sum(1), purchases.sum(1), money.sum(1))

    def best_lists(self, users: Ints, day: int, k: int, measure: Measure = "purchases") -> Ints:
        """A list of ``k`` places for each user that no other is worth more than (n_users, k).

        ``PAD`` where there are fewer products.
        """
        parts = [self._best(users[at : at + CHUNK], day, k, measure) for at in range(0, len(users), CHUNK)]
        return np.concatenate([np.zeros((0, k), np.int32), *parts])

    def regret(self, users: Ints, lists: Ints, day: int, measure: Measure = "purchases") -> Floats:
        """How much less than the best list of as many places each is worth (n,)."""
        best = self.value(users, self.best_lists(users, day, lists.shape[1], measure), day)
        return best.of(measure) - self.value(users, lists, day).of(measure)

    def examined(self, k: int) -> Floats:
        """Probability that one looks at each of the first ``k`` places (k,)."""
        given = np.array(self.config.lists.examined[:k])
        return np.pad(given, (0, k - len(given)))

    def _best(self, users: Ints, day: int, k: int, measure: Measure) -> Ints:
        near = self._nearest(users, day, min(k + SPARE, len(self.item_ids)), measure)  # (n, about k)
        worth = self._worth(self.leaning(users, near, day), near, measure)
        ranked = np.take_along_axis(near, np.argsort(-worth, axis=1, kind="stable"), 1)[:, :k]
        ranked[~np.isfinite(self.leaning(users, ranked, day))] = PAD
        lists = np.full((len(users), k), PAD, np.int32)
        places = np.argsort(-self.examined(k), kind="stable")[: ranked.shape[1]]
        lists[:, places] = ranked
        return lists

    def _nearest(self, users: Ints, day: int, n: int, measure: Measure) -> Ints:
        """The ``n`` products of most worth to each user, as far as float32 tells (n_users, n)."""
        today, asked = self._day(day), self.config.tastes
        tastes = (today.tastes[users] * asked.affinity).astype(np.float32)
        score = tastes @ self._vectors32.T + today.shared.astype(np.float32)  # (n_users, n_items)
        row, item, count = self.habits.rows(users)
        score[row, item] += (asked.habit * np.log1p(count)).astype(np.float32)
        if measure == "money":
            score = self._worth(score, np.arange(len(self.item_ids)), measure)
        return highest(score, n)

    def _worth(self, leaning: Floats, items: Ints, measure: Measure) -> Floats:
        """Of a look, where all that matters is the order; clicks and purchases both rise with l."""
        if measure != "money":
            return leaning
        found = self._chances(leaning)
        return np.asarray(found.click * found.purchase * self.price[items])

    def _chances(self, leaning: Floats) -> Chances:
        asked, liked = self.config.outcomes, expit(leaning)
        low, high = asked.purchase
        return Chances(asked.click * liked, asked.cart, low + (high - low) * liked)

    def _day(self, day: int) -> _Day:
        if day not in self._held:
            if len(self._held) >= MOST_DAYS:
                self._held.clear()
            asked, factor = self.config.tastes, self._factor(day)
            heard = np.log1p(self.popularity)
            usual = np.median(heard[self.popularity > 0])
            with np.errstate(divide="ignore"):
                shared = asked.base + asked.popularity * (heard - usual) + np.log(factor)
            self._held[day] = _Day(self._drifted(day), factor, shared, np.cumsum(self.popularity * factor))
        return self._held[day]

    def _factor(self, day: int) -> Floats:
        found = np.ones(len(self.item_ids))
        for trend in self.config.trends:
            if trend.from_day <= day <= trend.to_day:
                found[self.text["category"] == trend.category] *= trend.factor
        new = slice(len(self.fitted.item_ids), None)
        found[new] *= np.where(self.products.day <= day, self.config.new_products.liked, 0)
        return found

    def _drifted(self, day: int) -> Floats:
        """Tastes after a random walk of so many steps, of length one (n_users, dims)."""
        n, dims = self._tastes.shape
        while len(self._moved) <= day:
            step = chance(self.config.seed, Draw.DRIFT, len(self._moved)).normal(size=(n, dims)) / np.sqrt(dims)
            self._moved.append(self._moved[-1] + self.config.tastes.drift * step)
        return unit(self._moved[day])

    def _check_trends(self) -> None:
        known = set(self.text["category"].tolist())
        for at, trend in enumerate(self.config.trends):
            if trend.category not in known:
                some = ", ".join(sorted(known - {""})[:3])
                raise ConfigError(
                    f"world: trends.{at}.category: {trend.category!r} is no category of the catalogue. "
                    f"Take one that is, such as {some}."
                )


def highest(score: npt.NDArray[np.floating[Any]], n: int) -> Ints:
    """Columns of each row's ``n`` highest scores, in no order (n_rows, n).

    They lie in the ``n`` blocks of columns with the highest maxima, so that no whole row is partitioned.
    """
    rows, columns = score.shape
    if columns <= n * BLOCK:
        return np.asarray(np.argpartition(-score, min(n, columns) - 1, axis=1)[:, :n], np.int32)
    blocks = np.pad(score, ((0, 0), (0, -columns % BLOCK)), constant_values=-np.inf).reshape(rows, -1, BLOCK)
    chosen = np.argpartition(-blocks.max(2), n - 1, axis=1)[:, :n]  # (rows, n)
    among = np.take_along_axis(blocks, chosen[..., None], 1).reshape(rows, -1)  # (rows, n * BLOCK)
    column = (chosen[..., None] * BLOCK + np.arange(BLOCK)).reshape(rows, -1)
    best = np.argpartition(-among, n - 1, axis=1)[:, :n]
    return np.take_along_axis(column, best, 1).astype(np.int32)


def _drawn(config: WorldConfig, known: int) -> Ints:
    """The shoppers of the data that take part, ascending."""
    count = config.shoppers.count or known
    if count > known:
        raise ConfigError(f"world: shoppers.count: {count} of {known} cannot be taken. Write 0 for all of them.")
    return np.sort(chance(config.seed, Draw.SHOPPERS).permutation(known)[:count]).astype(np.int32)
