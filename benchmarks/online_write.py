"""Rows and tiles written per CPU-second against Feast's ``write_to_online_store`` on its Redis store."""

from collections.abc import Sequence

import numpy as np

from benchmarks.stores import NOW, Stores, stores
from benchmarks.windows import tile_columns, windowed_views, write_history
from headwater.bench import Measure, Sample, compare, interleaved
from headwater.online import codec
from headwater.online.writer import Key, OnlineWriter
from headwater.plan import DAY_MS, BatchView, View
from headwater.registry.compile import compile_batch_view

ROWS = 20_000
FEAST_SHARE = 20
"""Feast writes this many times fewer rows, or a round would take minutes; figures are per row."""
TILED = 500
"""Entities whose newest tile the stream writes again in one batch."""
NOW_MS = int(NOW.timestamp() * 1000)
UNIT, FEAST = "per 1,000", "rows by write_to_online_store"


def measure(size: float) -> Sequence[Measure]:
    """CPU time of the client and of the server per thousand rows, and per thousand tiles."""
    rows = max(FEAST_SHARE, int(ROWS * size))
    with stores(rows) as made:
        few = made.frames["view0"].head(rows // FEAST_SHARE)
        ready = compile_batch_view(made.ours.get_feature_view("view0").to_proto().spec, {"item": "item_id"})
        writer, view = OnlineWriter(made.client, "ours"), windowed_views()[0]
        tiled: list[Key] = [(f"item{number}",) for number in range(TILED)]
        history = write_history(writer, (view,), tiled, NOW_MS)
        counts = iter(range(4, 10**9))
        figures = interleaved({
            "rows": lambda: _write_rows(writer, made, ready),
            "tiles": lambda: _write_tiles(writer, view, tiled, next(counts)),
            "history": lambda: write_history(writer, (view,), tiled, NOW_MS),
            "feast": lambda: made.feast.write_to_online_store("view0", few),
        }, at_least_ms=60, server_ms=made.server_ms)  # fmt: skip
    feast = figures["feast"].per(len(few) / 1000)
    return [
        *_compared("packed rows, compare-and-set", figures["rows"].per(rows / 1000), feast, 55),
        *_compared("tiles of the stream", figures["tiles"].per(TILED * len(view.tables) / 1000), feast, None),
        *_compared("tiles of a backfill", figures["history"].per(history / 1000), feast, None),
    ]


def _compared(name: str, ours: Sample, feast: Sample, target: float | None) -> list[Measure]:
    return [
        compare(name, f"CPU ms {UNIT}", ours, FEAST, feast, target),
        compare(f"{name}, server", f"server CPU ms {UNIT}", ours.of_server, FEAST, feast.of_server, None),
    ]


def _write_rows(writer: OnlineWriter, made: Stores, view: BatchView) -> None:
    frame = made.frames["view0"]
    columns = {column.name: frame[column.name].to_numpy() for column in view.columns}
    times = np.full(len(frame), NOW_MS)
    rows = codec.encode_rows(view, times, times, columns)
    writer.write_rows(view, list(zip(frame["item_id"].tolist())), rows)


def _write_tiles(writer: OnlineWriter, view: View, keys: list[Key], count: int) -> None:
    """What the sink writes as events come: each entity's newest tile, with more events than before."""
    for table in view.tables:
        columns = tile_columns(table, np.full(len(keys), NOW_MS // DAY_MS), NOW_MS, count)
        writer.write_tiles(table, view.join_keys, keys, columns)
