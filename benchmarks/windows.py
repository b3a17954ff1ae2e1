"""Three windowed views of 20 features in all, and tiles as a catalogue's events leave them."""

from datetime import timedelta
from typing import Any

import numpy as np
from feast import Entity, FileSource, KafkaSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Float64
from numpy.typing import NDArray

from headwater.online import codec
from headwater.online.writer import Key, OnlineWriter
from headwater.plan import DAY_MS, Table, View
from headwater.registry.compile import compile_view

DAYS = 90
ACTIVE_DAYS = 20
"""Days with an event of the median entity, of the last 90; drawn log-normal, so a few have one nearly every day."""
_PARTS: dict[str, tuple[tuple[str, str, tuple[int, ...]], ...]] = {
    "purchases": (("", "count", (1, 7, 30, 90)), ("value", "sum", (7, 30, 90))),
    "baskets": (("value", "mean", (30, 90)), ("value", "max", (7, 30, 90)), ("", "count", (7, 90))),
    "returns": (("", "count", (7, 30, 90)), ("value", "sum", (30, 90)), ("", "decayed_count(7d)", (30,))),
}


def windowed_views() -> tuple[View, ...]:
    """Windows of 1 to 90 days by hops of a day, keyed by item."""
    return tuple(_view(name) for name in _PARTS)


def write_history(writer: OnlineWriter, views: tuple[View, ...], keys: list[Key], now_ms: int) -> int:
    """Write a tile for each day on which an entity had events; return how many there are."""
    rng = np.random.default_rng(0)
    written = 0
    for view in views:
        days = np.minimum(rng.lognormal(np.log(ACTIVE_DAYS), 0.8, len(keys)).astype(int) + 1, DAYS)
        ages = [rng.choice(DAYS, count, replace=False) for count in days]
        owners = np.repeat(np.arange(len(keys)), days)
        for table in view.tables:
            tile = now_ms // DAY_MS - np.concatenate(ages)
            columns = tile_columns(table, tile, now_ms)
            writer.write_tiles(table, view.join_keys, [keys[owner] for owner in owners], columns)
            written += len(owners)
    return written


def tile_columns(table: Table, tile: NDArray[Any], now_ms: int, count: int = 3) -> dict[str, NDArray[Any]]:
    """Live tiles of ``count`` events each; whatever the partials hold takes as long to read."""
    n = len(tile)
    columns: dict[str, NDArray[Any]] = {
        "tile": tile, "slot": np.full(n, codec.LIVE), "count": np.full(n, count), "hash": np.arange(n, dtype=np.uint64),
        "newest": np.minimum(tile * DAY_MS + DAY_MS, now_ms) - 1, "ingest": np.full(n, now_ms),
    }  # fmt: skip
    return columns | {partial.name: np.arange(n) for partial in table.partials}


def _view(name: str) -> View:
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    events = KafkaSource(
        name="sales", topic="sales", kafka_bootstrap_servers="", timestamp_field="event_time",
        message_format=JsonFormat(schema_json="event_id string, event_time bigint, item_id string, value double"),
        batch_source=FileSource(path="sales", timestamp_field="event_time"),
        tags={"headwater.event_id": "event_id", "headwater.key": "item_id"},
    )  # fmt: skip
    parts = [
        Aggregation(
            column=column, function=function, name=f"{name}_{function.split('(')[0]}_{days}d",
            time_window=timedelta(days=days), slide_interval=timedelta(days=1),
        )
        for column, function, windows in _PARTS[name]
        for days in windows
    ]  # fmt: skip
    view = StreamFeatureView(
        name=name, entities=[item], source=events, ttl=timedelta(days=DAYS), aggregations=parts,
        timestamp_field="event_time", schema=[Field(name=part.name, dtype=Float64) for part in parts],
        tags={"headwater.projection": "SELECT item_id, value FROM sales"},
    )  # fmt: skip
    return compile_view(view.to_proto().spec, {"item": "item_id"})
