"""Fixed rules judged without a server."""

import numpy as np
import pandas as pd

from headwater.plan import DAY_MS
from simulation import rules


def test_rules_rank_by_counts_before_the_instant(world, fitted):
    users, at_ms = world.present(0), 20 * DAY_MS
    bought = rules.numbered(world, frame_of(fitted))
    early = bought.before(at_ms)
    counts = np.zeros((len(world.user_ids), len(world.item_ids)))
    np.add.at(counts, (early.user, early.item), 1)
    everyone = counts.sum(0)
    popular, own = rules.popular(bought, users, at_ms, 5), rules.own_frequency(bought, users, at_ms, 5)
    np.testing.assert_array_equal(popular, np.tile(np.argsort(-everyone, kind="stable")[:5], (len(users), 1)))
    for user, items in zip(users, own, strict=True):
        wanted = np.lexsort((np.arange(len(everyone)), -everyone, -counts[user]))[:5]
        np.testing.assert_array_equal(items, wanted)


def test_the_best_list_is_worth_more_than_ones_own_and_that_more_than_the_popular(world, fitted):
    users, at_ms = world.shoppers, 40 * DAY_MS
    lists = [rule(fitted.bought, users, at_ms, 6) for rule in (rules.popular, rules.own_frequency)]
    worth = [world.value(users, each, 0).purchases.mean() for each in (*lists, world.best_lists(users, 0, 6))]
    assert worth[0] < worth[1] < worth[2]


def test_purchases_are_numbered_as_the_world_numbers_them_newcomers_too(world):
    frame = pd.DataFrame({
        "user_id": ["u02", "sim-1-s0001-001", "stranger", "u02"],
        "item_id": ["sim-1-p0003", "i07", "i07", "thing"],
        "event_time": [5, 3, 4, 6],
    })  # fmt: skip
    bought = rules.numbered(world, frame)
    assert world.user_ids[bought.user].tolist() == ["sim-1-s0001-001", "u02"]
    assert world.item_ids[bought.item].tolist() == ["i07", "sim-1-p0003"]
    assert bought.at_ms.tolist() == [3, 5]
    assert bought.n_users == len(world.user_ids)


def frame_of(fitted) -> pd.DataFrame:
    bought = fitted.bought
    return pd.DataFrame({
        "user_id": fitted.user_ids[bought.user], "item_id": fitted.item_ids[bought.item], "event_time": bought.at_ms,
    })  # fmt: skip
