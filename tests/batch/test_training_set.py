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
from support.archives import draw, write
from support.services import NOW

from batch import training_set
from batch.backfill import backfill
from batch.labels import number_labels
from batch.training_set import build_training_set, read_meta
from headwater.clock import ManualClock
from headwater.errors import DataError
from headwater.online.reader import OnlineReader
from headwater.plan import FeaturePlan
from headwater.settings import Settings


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
@pytest.mark.parametrize("kinds", [(pa.string(), pa.int64()), (pa.null(), pa.null())], ids=["typed", "without types"])
def test_no_labels_give_an_empty_set_with_the_full_schema(
    spark: Any, plan: FeaturePlan, tmp_path: Path, kinds: tuple[pa.DataType, pa.DataType]
) -> None:
    """Whether the file has types or is what pandas writes of an empty table."""
    settings = Settings(state_dir=tmp_path)
    write(draw(20, late=False), settings.events_dir)
    user, time = kinds
    labels = pa.table(
        {"user_id": pa.array([], user), "event_timestamp": pa.array([], time), "label": pa.array([], time)}
    )
    pq.write_table(labels, tmp_path / "labels.parquet")
    made = build_training_set(spark, settings, plan, "all", tmp_path / "labels.parquet", tmp_path / "rows")
    assert (made.rows, made.positives, made.leaks) == (0, 0, ())
    schema = ds.dataset(tmp_path / "rows").schema
    assert schema.names == ["label_row", "user_id", "event_timestamp", "label", *plan.service("all").names]
    assert {schema.field(name).type for name in plan.service("all").names} == {pa.float32()}


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
        ({"user_id": ["1"], "event_timestamp": [None]}, "row 0 has no event_timestamp"),
        ({"user_id": ["1"], "event_timestamp": pa.array([1], pa.date32())}, "event_timestamp is date32"),
        ({"user_id": ["1"], "event_timestamp": [1.5]}, "event_timestamp is double"),
        ({"user_id": [1.0], "event_timestamp": [1]}, "join key 'user_id' is double, and entities are named by"),
        ({"user_id": [["1"]], "event_timestamp": [1]}, "join key 'user_id' is list"),
        ({"user": ["1"], "event_timestamp": [1]}, "join key 'user_id' is not among user, event_timestamp"),
        ({"user_id": ["1"], "event_timestamp": [1], "_ROW": [1]}, "'_ROW' is one that the training set adds"),
        (
            {"user_id": ["1"], "event_timestamp": [1], "x": [1], "X": [1]},
            "Spark does not tell columns 'x' and 'X' apart",
        ),
        ({"user_id": ["1"], "event_timestamp": [1], "at": pa.array([1], pa.time32("ms"))}, "'at' is time32"),
        ({"user_id": ["1"], "event_timestamp": pa.array([2**40], pa.timestamp("s", "UTC"))}, "out of bounds"),
    ],
)
def test_wrong_labels_are_told_in_one_sentence(columns: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        number_labels(pa.table(columns), ["user_id"], tmp_path / "labels.parquet")


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"labels\.parquet"):
        number_labels(tmp_path / "labels.parquet", [], tmp_path / "numbered.parquet")


def test_a_folder_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet file there"):
        number_labels(tmp_path, [], tmp_path / "numbered.parquet")


def test_a_folder_of_unlike_tables_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    pq.write_table(pa.table({"event_timestamp": [1], "x": ["a"]}), tmp_path / "given" / "a.parquet")
    pq.write_table(pa.table({"event_timestamp": [1], "x": [[1]]}), tmp_path / "given" / "b.parquet")
    with pytest.raises(DataError, match="labels: "):
        number_labels(tmp_path / "given", [], tmp_path / "numbered.parquet")


def test_an_instant_is_one_in_any_time_zone(tmp_path: Path) -> None:
    table = pa.table({"event_timestamp": pa.array([5_000], pa.timestamp("ms", "Europe/Berlin"))})
    numbered = number_labels(table, [], tmp_path / "numbered.parquet")
    assert pq.read_table(numbered.path)["_at"].to_pylist() == [5_000]


def test_an_instant_inside_a_millisecond_sees_all_events_before_it(tmp_path: Path) -> None:
    """Rounded up: the event of that very millisecond happened before."""
    table = pa.table({"event_timestamp": pa.array([5_000_001, 5_000_000], pa.timestamp("ns", "UTC"))})
    numbered = number_labels(table, [], tmp_path / "numbered.parquet")
    assert pq.read_table(numbered.path)["_at"].to_pylist() == [6, 5]
