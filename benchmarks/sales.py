"""An archive of sales, and the view that both sides of the backfill benchmark fold."""

import json
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Float64

from headwater.plan import DAY_MS, FeaturePlan, Source, View
from headwater.registry.compile import compile_view
from headwater.settings import Settings

START, DAYS = 20_000 * DAY_MS, 30
EVENTS_AN_ITEM = 100
HOP, WINDOWS = timedelta(hours=1), (timedelta(days=1), timedelta(days=7))
FUNCTIONS = (("value", "count"), ("value", "sum"), ("value", "mean"), ("value", "max"))
COLUMNS = (("event_id", "string"), ("event_time", "bigint"), ("item_id", "string"), ("value", "double"))


def write(folder: Path, events: int) -> None:
    """Archive sales of as many items as have a hundred each, in order of time, as an import leaves them."""
    rng = np.random.default_rng(5)
    when = np.sort(START + rng.integers(0, DAYS * DAY_MS, events))
    items = np.char.add("item-", rng.integers(0, max(1, events // EVENTS_AN_ITEM), events).astype(str))
    ids = np.char.add("sale-", np.arange(events).astype(str))
    table = pa.table({
        "event_id": ids, "event_time": when, "item_id": items, "value": rng.integers(50, 2_000, events) / 100,
        "ingest_time": when, "partition": np.full(events, -1, np.int32), "offset": np.arange(events),
    })  # fmt: skip
    days = when // DAY_MS
    for day in np.unique(days).tolist():
        first, end = np.searchsorted(days, [day, day + 1]).tolist()
        target = folder / f"date={np.datetime64(day, 'D')}" / "part-0.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(first, end - first), target)


def aggregations() -> list[Aggregation]:
    """Four functions over two windows."""
    return [
        Aggregation(column=column, function=function, time_window=window, slide_interval=HOP,
                    name=f"{function}_{window.days}d")
        for column, function in FUNCTIONS for window in WINDOWS
    ]  # fmt: skip


def view() -> View:
    """The view, compiled as from a registry."""
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    source = KafkaSource(
        name="sales", topic="sales", kafka_bootstrap_servers="", timestamp_field="event_time",
        message_format=JsonFormat(schema_json=", ".join(f"{name} {kind}" for name, kind in COLUMNS)),
        batch_source=FileSource(path="sales", timestamp_field="event_time"),
        tags={"headwater.event_id": "event_id", "headwater.key": "item_id"},
    )  # fmt: skip
    made = StreamFeatureView(
        name="sold", entities=[item], source=source, ttl=WINDOWS[-1], aggregations=aggregations(),
        timestamp_field="event_time", schema=[Field(name=part.name, dtype=Float64) for part in aggregations()],
        tags={"headwater.projection": "SELECT item_id, value FROM sales"},
    )  # fmt: skip
    return compile_view(made.to_proto().spec, {"item": "item_id"})


def plan() -> FeaturePlan:
    """A plan of that view alone."""
    columns: Any = COLUMNS
    source = Source(
        name="sales", topic="sales", columns=columns, event_id="event_id", event_time="event_time", key="item_id"
    )
    return FeaturePlan(
        project="bench", registry_sha256="", repo=".", sources=(source,), views=(view(),), on_demand=(),
        batch_views=(), services=(),
    )  # fmt: skip


def ours() -> Callable[[dict[str, Any]], int]:
    """Fold an archive with our backfill, into the store where a question names one; tiles."""
    from batch.backfill import backfill
    from batch.session import spark_session
    from headwater.settings import get_settings

    spark, made = spark_session(get_settings()), plan()

    def fold(asked: dict[str, Any]) -> int:
        settings = Settings(state_dir=Path(asked["state"]), redis=asked.get("redis"))
        return backfill(spark, settings, made, START + DAYS * DAY_MS, materialize="redis" in asked).tiles

    return fold


def feast() -> Callable[[dict[str, Any]], int]:
    """Feast's tiling, as its Spark engine calls it on the driver; bringing the frame there is left out."""
    from feast.aggregation.tiling import (
        apply_sawtooth_window_tiling,
        convert_cumulative_to_windowed,
        deduplicate_keep_latest,
    )

    def fold(asked: dict[str, Any]) -> int:
        frame = pq.read_table(Path(asked["state"]) / "archive" / "sales").to_pandas()
        frame["event_time"] = frame["event_time"].astype("datetime64[ms]")
        rows = 0
        for window in WINDOWS:
            parts = [part for part in aggregations() if part.time_window == window]
            tiles = apply_sawtooth_window_tiling(frame, parts, ["item_id"], "event_time", window, HOP)
            values = convert_cumulative_to_windowed(tiles, ["item_id"], "event_time", window, parts)
            rows += len(deduplicate_keep_latest(values, ["item_id"], "event_time"))
        return rows

    return fold


def main() -> None:
    """Serve folds, one for each line of the input."""
    warnings.simplefilter("ignore")
    fold = {"ours": ours, "feast": feast}[sys.argv[1]]()
    print("\n@" + json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        made = fold(json.loads(line))
        print("\n@" + json.dumps({"records": made, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
