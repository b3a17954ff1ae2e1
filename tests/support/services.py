"""A service of windowed, ready-made and request-time features over the default envelope."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from support.archives import START, plan_with
from support.views import every_function

from headwater.plan import DAY_MS, BatchView, Column, FeaturePlan, OnDemandView, Service, ServiceFeature

NOW = START + 2 * DAY_MS
FUNCTION = """
import numpy as np

def ratio(inputs):
    now = np.asarray(inputs["request_time"])
    return {"ratio": inputs["n_3h"] / np.maximum(inputs["age"], 1.0), "hour": now // 3_600_000 % 24}
"""


def service_plan(folder: Path) -> FeaturePlan:
    """A service of windowed, ready-made and request-time features, with defaults."""
    (folder / "offline_ratios.py").write_text(FUNCTION)
    table = pa.table({
        "user_id": ["1", "2", "2"], "age": pa.array([30, 40, 41], pa.int64()),
        "event_timestamp": pa.array([START, START, NOW + 1], pa.timestamp("ms", "UTC")),
    })  # fmt: skip
    pq.write_table(table, folder / "profile.parquet")
    windowed = every_function(0, "by_user")
    profile = BatchView(
        name="profile", join_keys=("user_id",), columns=(Column(name="age", dtype="int64", default=-1.0),),
        path=str(folder / "profile.parquet"), timestamp_field="event_timestamp", created_field=None, ttl_ms=0,
        id="00112233aabbccdd",
    )  # fmt: skip
    ratios = OnDemandView(
        name="ratios", function="offline_ratios:ratio", inputs=(("by_user", "n_3h"), ("profile", "age")),
        request=("request_time",), columns=tuple(Column(name=name, dtype="float64") for name in ("ratio", "hour")),
    )  # fmt: skip
    numbers = [a.feature for a in windowed.aggregates if not a.is_list]
    chosen = [("by_user", name) for name in numbers] + [("ratios", "ratio"), ("profile", "age"), ("ratios", "hour")]
    service = Service(name="all", features=tuple(ServiceFeature(view=view, feature=name) for view, name in chosen))
    lists = Service(name="lists", features=(ServiceFeature(view="by_user", feature="last_kinds_1h"),))
    parts = {"on_demand": (ratios,), "batch_views": (profile,), "services": (service, lists)}
    return plan_with(windowed, **parts).model_copy(update={"repo": str(folder)})
