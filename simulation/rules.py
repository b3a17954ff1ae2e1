"""Rules that need no training, in the world's numbers: what a learned policy has to beat.

Lists come as (n_users, k) item numbers, for :meth:`simulation.world.World.value` to judge without a server.
"""

import numpy as np
import pandas as pd

from models.baselines import OwnFrequency, Popularity
from models.interactions import Interactions
from simulation.fitted import Ints
from simulation.world import World


def popular(bought: Interactions, users: Ints, at_ms: int, k: int) -> Ints:
    """What everyone bought most often before ``at_ms``, the same for all (len(users), k)."""
    return Popularity(bought).top_k(users, at_ms, k)


def own_frequency(bought: Interactions, users: Ints, at_ms: int, k: int) -> Ints:
    """What each user bought most often before ``at_ms``, filled up with what everyone did (len(users), k)."""
    return OwnFrequency(bought, half_life=None).top_k(users, at_ms, k)


def numbered(world: World, purchases: pd.DataFrame) -> Interactions:
    """Purchases ``user_id, item_id, event_time`` in the world's numbers, newcomers too; what it knows not is left out.

    ``models.interactions.read_purchases`` reads such a frame from the archive.
    """
    user = world.users_of(purchases["user_id"].to_numpy(object))
    item = world.items_of(purchases["item_id"].to_numpy(object))
    known = (user >= 0) & (item >= 0)
    user, item, at_ms = user[known], item[known], purchases["event_time"].to_numpy(np.int64)[known]
    order = np.lexsort((item, user, at_ms))
    return Interactions(user[order], item[order], at_ms[order], len(world.user_ids), len(world.item_ids))
