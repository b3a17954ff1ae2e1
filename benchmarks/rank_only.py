"""Ranking items that the caller names, with features from the store: 17 features, 50 trees, over gRPC.

What Metarank does, beside the requests a second that were recorded of it on two quiet cores, with its state in Redis
and in its own memory. Metarank itself is not installed here.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from benchmarks.served import Served, closed_loop, closed_loops, connection, serving, spent, stocked
from headwater.bench import Measure, Sample
from serving.load import zipf
from serving.proto.headwater.v1 import recommendation_pb2

ITEMS, USERS, TREES, SKEW = 10_000, 2_500, 50, 1.0
ROUNDS, SECONDS, ASKED, WARM = 7, 2.0, 400, 50
SURFACE = "given"
SERVICES = '''"""What the ranker reads of a product, and of a household's habit with it."""

from feast import FeatureService
from views import WINDOWS, item_activity, user_item_activity

recommend = FeatureService(
    name="recommend",
    features=[
        item_activity[
            [f"item_purchases_{window}d" for window in WINDOWS]
            + ["item_spend_7d", "item_spend_30d", "item_mean_value_90d", "item_purchases_decayed_7d"]
            + ["item_purchases_total"]
        ],
        user_item_activity[
            [f"user_item_purchases_{window}d" for window in WINDOWS]
            + ["user_item_spend_90d", "user_item_purchases_decayed_30d", "user_item_purchases_decayed_90d"]
            + ["user_item_purchases_total"]
        ],
    ],
)
'''
ON_REDIS = {(24, 1): 192, (24, 4): 301, (100, 1): 92, (100, 4): 232}
IN_MEMORY = {(24, 1): 389, (24, 4): 977, (100, 1): 232, (100, 4): 452}
"""Requests a second by items and connections, recorded."""


def measure(size: float) -> Sequence[Measure]:
    """Requests a second at one and at four connections, each asking as soon as it is answered; two workers."""
    found: list[Measure] = []
    shape = max(2_000, int(ITEMS * size)), max(50, int(USERS * size)), TREES
    with stocked(*shape, services=SERVICES) as made, serving(made.settings, workers=2) as served:
        for items, connections in ON_REDIS:
            requests = _requests(made.shop.n_items, made.shop.users, items, max(20, int(ASKED * size)))
            found += _rates(served, requests, items, connections, max(0.2, SECONDS * size))
    return found


def _requests(n_items: int, users: Sequence[str], items: int, n: int) -> list[recommendation_pb2.RecommendRequest]:
    """Items as skewed as what is bought, each once in a request."""
    rng = np.random.default_rng(items)
    return [
        recommendation_pb2.RecommendRequest(
            user_id=users[user], surface=SURFACE, limit=items,
            include_item_ids=[f"p{at}" for at in np.unique((n_items * rng.random(4 * items) ** 2).astype(int))[:items]],
        )
        for user in zipf(len(users), SKEW, n, seed=items)
    ]  # fmt: skip


def _rates(
    served: Served,
    requests: Sequence[recommendation_pb2.RecommendRequest],
    items: int,
    connections: int,
    seconds: float,
) -> list[Measure]:
    rates, costs = [], []
    for _ in range(ROUNDS):  # of connections of its own, since the kernel deals them to the workers as it happens to
        with ExitStack() as stack:
            asks = [stack.enter_context(connection(served.address)) for _ in range(connections)]
            assert len(asks[0](requests[0]).items) == len(requests[0].include_item_ids)
            for ask in asks:
                closed_loop(ask, requests[:WARM])
            used = served.cpu_ms()
            answered, took = closed_loops(asks, requests, seconds)
            rates.append(answered / took)
            costs.append(spent(used, served.cpu_ms(), answered))
    rate = Sample(rates)
    note = ", ".join(f"{group} {np.median([each[group] for each in costs]):.2f}" for group in costs[0])
    told = f"{items} items, {connections} connection{'s' if connections > 1 else ''}"
    return [
        Measure(
            f"{told}", round(rate.median), "requests/s", f"Metarank {where}, recorded", recorded[items, connections],
            round(rate.median / recorded[items, connections], 2), target,
            rate.median >= target * recorded[items, connections], rate.spread, note,
        )
        for where, recorded, target, note in (
            ("on Redis", ON_REDIS, 3.0, f"CPU ms a request: {note}"), ("in memory", IN_MEMORY, 1.0, ""),
        )
    ]  # fmt: skip
