"""Training rows of which one feature decides."""

import numpy as np
import pyarrow as pa

from models.trends import DAY_MS

NAMES = ("habit", "noise", "sometimes_missing")


def labelled(n_requests=120, n_candidates=25, seed=0) -> pa.Table:
    """Bought with a probability that only ``habit`` decides, in an order that hides the requests."""
    generator = np.random.default_rng(seed)
    n = n_requests * n_candidates
    request = np.repeat(np.arange(n_requests), n_candidates)
    habit = generator.random(n)
    missing = np.where(generator.random(n) < 0.3, np.nan, generator.random(n))
    label = generator.random(n) < habit**3
    table = pa.table(
        {
            "request_id": [f"r{number:03}" for number in request],
            "item_id": [f"i{number:02}" for number in np.tile(np.arange(n_candidates), n_requests)],
            "event_timestamp": pa.array(request * DAY_MS // 4, pa.timestamp("ms", tz="UTC")),
            "label": label.astype(np.int8),
            "weight": np.where(label, 1.0, 2.0).astype(np.float32),
            "habit": habit.astype(np.float32),
            "noise": generator.random(n).astype(np.float32),
            "sometimes_missing": missing.astype(np.float32),
        }
    )
    return table.take(generator.permutation(n))
