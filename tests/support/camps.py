"""Households of two tastes, and what they buy."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa

from models.interactions import Dataset, assemble
from models.trip_log import Corpus, in_memory

DAY_MS = 86_400_000


def two_camps(n_users=20, n_trips=30, seed=0) -> Dataset:
    """Even households buy items 0 to 9, odd ones 10 to 19, three a trip."""
    generator = np.random.default_rng(seed)
    rows = [
        (f"u{user:02}", f"i{10 * (user % 2) + item:02}", day * DAY_MS + user)
        for day in range(n_trips)
        for user in range(n_users)
        for item in generator.choice(10, 3, replace=False)
    ]
    items = pa.table(
        {
            "item_id": [f"i{n:02}" for n in range(22)],
            "department": ["food"] * 22,
            "category": ["even"] * 10 + ["odd"] * 10 + ["even", "odd"],
            "brand": ["own", None] * 11,
        }
    )
    users = pa.table({"user_id": ["u00", "u01", "elsewhere"], "age": [3, None, 1], "income": ["high", "low", "low"]})
    return assemble(pd.DataFrame(rows, columns=["user_id", "item_id", "event_time"]), items, users)


def in_blocks(data: Dataset, n_recent: int, n_blocks=2) -> Corpus:
    """All trips, dealt into blocks."""
    corpus = in_memory(data, n_recent)
    (trips,) = corpus.log.blocks
    blocks = [trips.take(np.arange(first, len(trips), n_blocks)) for first in range(n_blocks)]
    return replace(corpus, log=replace(corpus.log, blocks=blocks))
