"""Products without a history and shoppers who were never there before: drawn, each with the day on which it comes."""

from dataclasses import dataclass

import numpy as np

from simulation.chance import Draw, chance
from simulation.config import WorldConfig
from simulation.fitted import Fitted, Floats, Ints, Texts, unit

SHOPPER_SPREAD = 0.5
"""How far a new shopper's taste lies from that of the one it is drawn after."""


@dataclass(frozen=True)
class Products:
    """In order of ``day``; arrays (n,), ``vectors`` (n, dims), ``popularity`` purchases of a product as popular."""

    ids: Texts
    day: Ints
    vectors: Floats
    popularity: Floats
    price: Floats
    text: dict[str, Texts]


@dataclass(frozen=True)
class Shoppers:
    """In order of ``day``; ``ids`` and ``day`` (n,), ``vectors`` (n, dims)."""

    ids: Texts
    day: Ints
    vectors: Floats


def new_products(fitted: Fitted, config: WorldConfig) -> Products:
    """Each is of the kind of a product that is drawn by its purchases, and lies near the middle of that category."""
    asked, rng = config.new_products, chance(config.seed, Draw.NEW_PRODUCTS)
    number = np.arange(asked.count)
    like = fitted.bought.item[rng.integers(len(fitted.bought), size=asked.count)]  # (count,)
    noise = rng.normal(size=(asked.count, fitted.items.shape[1])) / np.sqrt(fitted.items.shape[1])
    category = fitted.text["category"]
    alike = [np.flatnonzero((category == category[item]) & (fitted.popularity > 0)) for item in like]
    middle = np.array([fitted.items[rows].mean(0) for rows in alike]).reshape(noise.shape)
    text = {name: column[like] for name, column in fitted.text.items()}
    text["name"] = np.array([f"New: {kind.lower()} {at}" for at, kind in enumerate(category[like])], object)
    return Products(
        ids=np.array([f"sim-{config.seed}-p{at:04d}" for at in number], object),
        day=(asked.from_day + number // asked.a_day).astype(np.int32),
        vectors=unit(unit(middle) + asked.spread * noise),
        popularity=np.array([np.quantile(fitted.popularity[rows], asked.popular) for rows in alike], np.float64),
        price=np.array([round(float(np.median(fitted.price[rows])), 2) for rows in alike], np.float64),
        text=text,
    )


def new_shoppers(fitted: Fitted, config: WorldConfig, days: int) -> Shoppers:
    """Each has a taste near that of a shopper who is drawn, and no habits; more days leave those of the first as is."""
    n, dims = config.shoppers.new_a_day, fitted.users.shape[1]
    ids, vectors = [], [np.zeros((0, dims))]
    for day in range(days):
        rng = chance(config.seed, Draw.NEW_SHOPPERS, day)
        like = fitted.users[rng.integers(len(fitted.users), size=n)]
        vectors.append(unit(like + SHOPPER_SPREAD * rng.normal(size=(n, dims)) / np.sqrt(dims)))
        ids += [f"sim-{config.seed}-s{day:04d}-{at:03d}" for at in range(n)]
    return Shoppers(np.array(ids, object), np.repeat(np.arange(days, dtype=np.int32), n), np.concatenate(vectors))
