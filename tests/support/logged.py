"""A log of labelled impressions of which every number is known."""

import numpy as np
import pyarrow as pa

FEATURES = ("user_purchases_7d", "item_purchases_7d")
"""Of the small bundle's ranker."""


def rows(n: int = 60, seed: int = 0) -> pa.Table:
    """Lists of two to three places, drawn evenly among five, and two of the others sampled."""
    rng, found = np.random.default_rng(seed), []
    for at in range(n):
        order, k = rng.permutation(5), 2 + at % 2
        for place, item in enumerate(order[: k + 2].tolist()):
            shown = place < k
            found.append({
                "request_id": f"r{at:03}", "item_id": f"i{item}", "shown": shown,
                "position": place + 1 if shown else None, "position_propensity": 1 / (5 - place) if shown else None,
                "sampling_probability": 1.0 if shown else 2 / (5 - k), "label": int(shown and rng.random() < 0.3),
                **dict.fromkeys(FEATURES, float(item)),
            })  # fmt: skip
    return pa.Table.from_pylist(found)


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(1).permutation(len(table)))
