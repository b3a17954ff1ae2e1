"""All trips that the towers learn from, in blocks of which one at a time is in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from models.interactions import Dataset, Items, Users
from models.trips import Times, Trips, shopping_trips


@dataclass(frozen=True)
class TripLog:
    """Blocks of trips, and what is known of all of them.

    Attributes
    ----------
    first_ms, last_ms
        Time of the first and the last purchase, epoch ms.
    counts : (n_items,) int64
        Purchases of each product.
    digest
        Fingerprint of the purchases, hex sha256.
    blocks
        Each a sample of all trips, read when it is asked for.
    """

    n_trips: int
    n_purchases: int
    first_ms: int
    last_ms: int
    counts: Times
    digest: str
    blocks: Sequence[Trips]


@dataclass(frozen=True)
class Corpus:
    """What the towers learn from: users and items with their numbering, and the trips."""

    users: Users
    items: Items
    log: TripLog


def in_memory(data: Dataset, n_recent: int) -> Corpus:
    """Put all of a data set's trips into one block."""
    bought = data.bought
    trips = shopping_trips(bought, n_recent)
    digest = sha256()
    for array in (bought.user, bought.item, bought.at_ms):
        digest.update(array.tobytes())
    first, last = (int(bought.at_ms[0]), int(bought.at_ms[-1])) if len(bought) else (0, 0)
    log = TripLog(
        len(trips), len(bought), first, last, np.bincount(bought.item, minlength=bought.n_items), digest.hexdigest(),
        [trips],
    )  # fmt: skip
    return Corpus(data.users, data.items, log)
