"""A training set's rows equal what serving reads; it appears whole or not at all; wrong labels are told plainly."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import redis
from support.archives import START, draw, plan_with, write
from support.views import every_function

from batch import training_set
from batch.backfill import backfill
from batch.labels import number_labels
from batch.training_set import build_training_set, read_meta
from headwater.clock import ManualClock
from headwater.errors import DataError
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, BatchView, Column, FeaturePlan, OnDemandView, Service, ServiceFeature
from headwater.settings import Settings

NOW = START + 2 * DAY_MS
FUNCTION = """
import numpy as np

def ratio(inputs):
    now = np.asarray(inputs["request_time"])
    return {"ratio": inputs["n_3h"] / np.maximum(inputs["age"], 1.0), "hour": now // 3_600_000 % 24}
"""


@pytest.fixture
def plan(tmp_path: Path) -> FeaturePlan:
    """A service of windowed, ready-made and request-time features, with defaults."""
    (tmp_path / "offline_ratios.py").write_text(FUNCTION)
    table = pa.table({
        "user_id": ["1", "2", "2"], "age": pa.array([30, 40, 41], pa.int64()),
        "event_timestamp": pa.array([START, START, NOW + 1], pa.timestamp("ms", "UTC")),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "profile.parquet")
    windowed = every_function(0, "by_user")
    profile = BatchView(
        name="profile", join_keys=("user_id",), columns=(Column(name="age", dtype="int64", default=-1.0),),
        path=str(tmp_path / "profile.parquet"), timestamp_field="event_timestamp", created_field=None, ttl_ms=0,
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
    return plan_with(windowed, **parts).model_copy(update={"repo": str(tmp_path)})


@pytest.mark.integration
def test_rows_equal_what_serving_reads(
    spark: Any, valkey: str, valkey_client: redis.Redis, plan: FeaturePlan, tmp_path: Path
) -> None:
    """Windowed, ready-made, request-time, defaults and order: the float32 matrix is the same, bit for bit."""
    settings = Settings(state_dir=tmp_path, redis=valkey)
    write(draw(200, late=False), settings.events_dir)
    backfill(spark, settings, plan, now_ms=NOW)
    users = ["1", "2", "21", "9", "1"]
    instants = pa.array([NOW] * 5, pa.timestamp("ms", "UTC")).cast(pa.timestamp("ns", "UTC"))
    labels = pa.table({"user_id": users, "event_timestamp": instants, "label": [1, 0, 0, 1, 0]})
    made = build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows")
    assert (made.rows, made.positives, made.features) == (5, 2, len(plan.service("all").features))
    assert read_meta(tmp_path / "rows") == made
    assert made.feature_schema_hash == plan.schema_hash("all")

    rows = ds.dataset(tmp_path / "rows").to_table().sort_by("label_row")
    assert rows["user_id"].to_pylist() == users
    names = plan.service("all").names
    offline = np.stack([rows[name].to_numpy() for name in names], 1)
    reader = OnlineReader(valkey_client, plan, ManualClock(NOW))
    online = reader.read_matrix("all", {"user_id": users}, at=NOW).values
    assert offline.dtype == online.dtype == np.float32
    np.testing.assert_array_equal(offline, online)
    assert rows["age"].to_pylist() == [30, 40, -1, -1, 30]


@pytest.mark.integration
def test_a_failed_run_leaves_the_old_set_and_no_litter(
    spark: Any, plan: FeaturePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state_dir=tmp_path)
    write(draw(50, late=False), settings.events_dir)
    labels = pa.table({"user_id": ["1"], "event_timestamp": [NOW]})
    first = build_training_set(spark, settings, plan, "all", labels, tmp_path / "out" / "rows")

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(training_set, "_describe", fail)
    with pytest.raises(OSError, match="no space"):
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "out" / "rows")
    assert read_meta(tmp_path / "out" / "rows") == first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rows"]


@pytest.mark.integration
def test_no_labels_give_an_empty_set_with_the_full_schema(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    write(draw(20, late=False), settings.events_dir)
    labels = pa.table({"user_id": pa.array([], pa.string()), "event_timestamp": pa.array([], pa.int64())})
    assert build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows").rows == 0
    schema = ds.dataset(tmp_path / "rows").schema
    assert schema.names == ["label_row", "user_id", "event_timestamp", *plan.service("all").names]


@pytest.mark.integration
def test_a_list_has_no_place_in_a_training_set(spark: Any, plan: FeaturePlan, tmp_path: Path) -> None:
    labels = pa.table({"user_id": ["1"], "event_timestamp": [NOW]})
    with pytest.raises(DataError, match="last_kinds_1h is a list and has no place in a matrix"):
        build_training_set(spark, Settings(state_dir=tmp_path), plan, "lists", labels, tmp_path / "rows")
    clash = labels.append_column("age", pa.array([3]))
    with pytest.raises(DataError, match="also a feature of all"):
        build_training_set(spark, Settings(state_dir=tmp_path), plan, "all", clash, tmp_path / "rows")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"event_timestamp": [1]}, "join key 'user_id' is not among event_timestamp"),
        ({"user_id": ["1"]}, "no column event_timestamp among user_id"),
        ({"user_id": ["1"], "event_timestamp": [datetime(2024, 1, 1)]}, "does not say which instant"),
        ({"user_id": ["1"], "event_timestamp": ["monday"]}, "event_timestamp is string"),
        ({"user_id": ["1", "1"], "event_timestamp": pa.array([1, None])}, "row 1 has no event_timestamp"),
    ],
)
def test_wrong_labels_are_told_in_one_sentence(columns: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        number_labels(pa.table(columns), ["user_id"], tmp_path / "labels.parquet")


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"labels\.parquet"):
        number_labels(tmp_path / "labels.parquet", [], tmp_path / "numbered.parquet")


def test_an_instant_inside_a_millisecond_sees_all_events_before_it(tmp_path: Path) -> None:
    """Rounded up: the event of that very millisecond happened before."""
    table = pa.table({"event_timestamp": pa.array([5_000_001, 5_000_000], pa.timestamp("ns", "UTC"))})
    numbered = number_labels(table, [], tmp_path / "numbered.parquet")
    assert pq.read_table(numbered.path)["_at"].to_pylist() == [6, 5]
