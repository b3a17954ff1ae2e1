"""Columns are added to a topic: old files lack them and read as null; what is removed or retyped is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import redis
from support.definitions import HOUR, aggregation, plan_of, stream_view

from batch.backfill import backfill
from batch.training_set import build_training_set
from benchmarks.oracle import Row, fold
from headwater.archive_files import Span, check_columns, live_files
from headwater.clock import ManualClock
from headwater.errors import DataError
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, FeaturePlan, Service, ServiceFeature
from headwater.records import SourceRecord, archive_schema, records_table
from headwater.settings import Settings
from streaming.compaction import compact
from streaming.parquet_log import MANIFEST, Manifest

START = 20_000 * DAY_MS
OLD = "event_id string, event_time bigint, user_id string, value double"
NEW = OLD.replace("value", "paid double, value")
FEATURES = ("n", "spent", "paid", "unpaid")


def plan_with(columns: str) -> FeaturePlan:
    """A topic of its own; only where there is a column ``paid`` it is folded."""
    has_paid = "paid" in columns
    projection = f"SELECT user_id, value, {'paid, ' if has_paid else ''}event_time FROM events"
    aggregations = [
        aggregation("n", "count", window=24 * HOUR, hop=HOUR),
        aggregation("spent", "sum", "value", 24 * HOUR, HOUR),
    ]
    aggregations += [aggregation("paid", "sum", "paid", None), aggregation("unpaid", "min", "paid", None)] * has_paid
    view = stream_view(aggregations, ("user_id",), projection, name="orders", schema_json=columns, topic="orders")
    service = Service(name="all", features=tuple(ServiceFeature(view="orders", feature=name) for name in FEATURES))
    return plan_of(view).model_copy(update={"services": (service,) * has_paid})


def write(folder: Path, plan: FeaturePlan, partition: int, numbers: range) -> list[Row]:
    """Archive orders as the plan's source declares them; return what the new definitions make of them."""
    (source,) = plan.sources
    values = [
        {
            "event_id": f"{partition}-{n}",
            "event_time": START + n * 3_000_000,
            "user_id": f"u{n % 3}",
            "value": n / 4,
            "paid": n / 8,
        }
        for n in numbers
    ]
    declared = [name for name, _ in source.columns]
    records = [SourceRecord({name: one[name] for name in declared}, one["event_time"]) for one in values]
    table = records_table(source, records, [one["event_time"] for one in values], partition, numbers)
    target = (
        folder
        / "date=2024-10-04"
        / ("import-0.parquet" if partition < 0 else Span(partition, numbers[0], numbers[-1]).name)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target)
    given = "paid" in declared
    return [
        Row(one["event_id"], one["event_time"], one["event_time"], (one["user_id"],), {
            "value": round(one["value"] * 10**6), "paid": round(one["paid"] * 10**6) if given else None,
        })
        for one in values
    ]  # fmt: skip


@pytest.mark.integration
def test_old_and_new_files_together_give_what_the_naive_window_gives(
    spark: Any, valkey: str, valkey_client: redis.Redis, tmp_path: Path
) -> None:
    """In the backfill and in a training set, before and after the files are compacted."""
    settings = Settings(state_dir=tmp_path, redis=valkey)
    folder, plan = settings.archive_dir / "orders", plan_with(NEW)
    imported = write(folder, plan_with(OLD), -1, range(10))
    rows = [
        *imported,
        *write(folder, plan_with(OLD), 0, range(3, 12)), *write(folder, plan, 0, range(12, 20)),
        *write(folder, plan, 1, range(5, 9)),
    ]  # fmt: skip
    (view,) = plan.views
    now = START + 20 * 3_000_000
    users = [("u0",), ("u1",), ("u2",)]

    backfill(spark, settings, plan, now_ms=now)
    read = OnlineReader(valkey_client, plan, ManualClock(now)).read_views({"orders": users}, now)["orders"]
    for at, user in enumerate(users):
        _, values = fold(view, imported, user, now, known=False)
        assert _told({name: held[at] for name, held in read.values.items()}) == values

    (folder / MANIFEST).write_text(Manifest("orders", "c1", {0: 20, 1: 9}).to_json())
    for files in (4, 3):
        assert len(live_files(folder)) == files
        labels = pa.table({"user_id": [user for (user,) in users], "event_timestamp": pa.array([now] * 3, pa.int64())})
        build_training_set(spark, settings, plan, "all", labels, tmp_path / "rows")
        made = ds.dataset(tmp_path / "rows").to_table().sort_by("label_row").to_pylist()
        for at, user in enumerate(users):
            _, values = fold(view, rows, user, now, known=True)
            assert _told({name: made[at][name] for name in FEATURES}) == {
                name: None if value is None else float(np.float32(value)) for name, value in values.items()
            }
        compact(settings.archive_dir, folder)


def test_a_column_that_is_gone_or_of_another_type_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    old, new = (archive_schema(plan_with(columns).sources[0]) for columns in (OLD, NEW))
    check_columns(folder, old)
    write(folder, plan_with(OLD), 0, range(3))
    check_columns(folder, old)
    check_columns(folder, new)
    write(folder, plan_with(NEW), 0, range(3, 6))
    write(folder, plan_with(OLD), 1, range(9))
    check_columns(folder, new)
    with pytest.raises(DataError, match="orders: column paid is archived and not declared any more"):
        check_columns(folder, old)
    retyped = archive_schema(plan_with(NEW.replace("paid double", "paid bigint")).sources[0])
    with pytest.raises(DataError, match="orders: column paid is archived as double and declared as int64"):
        check_columns(folder, retyped)


@pytest.mark.integration
def test_spark_is_not_asked_to_read_what_was_retyped(spark: Any, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    write(settings.archive_dir / "orders", plan_with(NEW), 0, range(3))
    write(settings.archive_dir / "orders", plan_with(NEW), -1, range(3))
    plan = plan_with(NEW.replace("value double", "value bigint"))
    with pytest.raises(DataError, match="column value is archived as double and declared as int64"):
        backfill(spark, settings, plan, now_ms=START, materialize=False)


def _told(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None or np.isnan(value) else float(value) for name, value in values.items()}
