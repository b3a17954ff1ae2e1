"""A small world: 30 shoppers of two tastes, 40 products in four categories, 40 days of purchases."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.simulated import FakeServer, Movable

from headwater.plan import DAY_MS
from models.interactions import assemble
from simulation.config import WorldConfig, load_world_config
from simulation.fitted import Fitted, fit_purchases
from simulation.world import World

N_USERS, N_ITEMS, DAYS = 30, 40, 40
CATEGORIES = ("BREAD", "CANDY", "MILK", "SOUP")


def _purchases() -> pd.DataFrame:
    """Even shoppers buy the first half of the products mostly, odd ones the second."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(N_USERS):
        for day in np.flatnonzero(rng.random(DAYS) < 0.2 + 0.02 * user):
            for _ in range(3):
                half = user % 2 if rng.random() < 0.9 else 1 - user % 2
                item = int(N_ITEMS / 2 * (half + rng.beta(1, 3)))
                rows.append((f"u{user:02}", f"i{item:02}", int(day) * DAY_MS + user, 1 + item % 7 + 0.25))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "event_time", "value"])


@pytest.fixture(scope="session")
def fitted() -> Fitted:
    frame = _purchases()
    items = pa.table({
        "item_id": [f"i{at:02}" for at in range(N_ITEMS)],
        "category": [CATEGORIES[at % 4] for at in range(N_ITEMS)],
        "department": ["FOOD"] * N_ITEMS,
        "brand": ["own"] * N_ITEMS,
        "name": [f"Item {at}" for at in range(N_ITEMS)],
    })  # fmt: skip
    return fit_purchases(frame, assemble(frame, items, None), dimensions=4)


@pytest.fixture(scope="session")
def config() -> WorldConfig:
    """The file that ships, on a scale of the small world."""
    shipped = load_world_config().model_dump()
    shipped["tastes"]["dimensions"] = 4
    shipped["tastes"]["base"] = -3.0
    shipped["shoppers"] |= {"sessions_a_day": 0.5, "new_a_day": 2}
    shipped["lists"]["limit"] = 6
    shipped["new_products"] |= {"count": 6, "a_day": 2}
    shipped["trends"] = [{"category": "CANDY", "from_day": 2, "to_day": 3, "factor": 4.0}]
    return WorldConfig.model_validate(shipped)


@pytest.fixture(scope="session")
def changed(config: WorldConfig) -> Callable[..., WorldConfig]:
    """``changed(tastes={"drift": 0.0})``: the small world with other values."""

    def make(**tables: Any) -> WorldConfig:
        held = config.model_dump()
        for name, values in tables.items():
            held[name] = held[name] | values if isinstance(values, dict) else values
        return WorldConfig.model_validate(held)

    return make


@pytest.fixture(scope="session")
def world(fitted: Fitted, config: WorldConfig) -> World:
    return World(fitted, config, days=5)


@pytest.fixture
def clock() -> Movable:
    return Movable(400 * DAY_MS)


@pytest.fixture
def server(world: World, clock: Movable) -> FakeServer:
    return FakeServer(world, clock)
