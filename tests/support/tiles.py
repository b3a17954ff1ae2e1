"""Tiles of a set of events, made one at a time from their meaning."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.oracle import Row
from headwater import folds
from headwater.events import event_hash
from headwater.online import codec
from headwater.plan import Table, View


def tile_columns(
    table: Table, rows: Sequence[Row], slot: int
) -> tuple[list[tuple[str, ...]], dict[str, np.ndarray], list[bytes] | None]:
    """What a writer is given for these events: keys, head and partial columns, payloads of a list table."""
    groups: dict[tuple[tuple[str, ...], int], list[Row]] = {}
    for row in rows:
        tile = 0 if table.hop_ms is None else row.event_time // table.hop_ms
        groups.setdefault((row.key, tile), []).append(row)
    records = [_record(table, tile, slot, group) for (_, tile), group in groups.items()]
    unsigned = {"hash", *(partial.name + "_lo" for partial in table.partials)}
    columns = {
        name: np.array([r[name] for r in records], np.uint64 if name in unsigned else np.int64)
        for name in records[0]
        if name != "payload"
    }
    payloads = None if table.kind == "fixed" else [r["payload"] for r in records]
    return [key for key, _ in groups], columns, payloads


def _record(table: Table, tile: int, slot: int, group: list[Row]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "tile": tile,
        "slot": slot,
        "count": len(group),
        "newest": max(r.event_time for r in group),
        "ingest": max(r.ingest_time for r in group),
        "hash": sum(event_hash(r.event_id) for r in group),
    }
    for partial in table.partials:
        values = [r.values[partial.column] for r in group if r.values[partial.column] is not None]
        if partial.kind == "sumsq":
            high, low = folds.split_words(sum(v * v for v in values))
            record[partial.name + "_hi"], record[partial.name + "_lo"] = high, low
        elif partial.kind == "count":
            record[partial.name] = len(values)
        elif partial.kind == "sum":
            record[partial.name] = sum(values)
        else:
            fold = min if partial.kind == "min" else max
            record[partial.name] = fold(values, default=codec.neutral(partial))
    if table.kind != "fixed":
        given = [
            (r.event_time, r.event_id, str(r.values[table.column])) for r in group if r.values[table.column] is not None
        ]
        record["payload"] = (
            folds.sketch({text for _, _, text in given})
            if table.kind == "distinct"
            else codec.pack_entries(_kept(table, sorted(given)))
        )
    return record


def _kept(table: Table, given: list[codec.Entry]) -> list[codec.Entry]:
    """What a tile of ordered entries must keep, from its meaning."""
    n = table.n or 0
    if table.kind == "last":
        return given[-n:]
    if table.kind == "last_distinct":
        return sorted({text: (time, name, text) for time, name, text in given}.values())[-n:]
    cleared = max((entry for entry in given if entry[2] == "clear"), default=None)
    touched = {
        entry[2].partition(":")[2]: entry
        for entry in given
        if entry[2].startswith(("add:", "remove:")) and (cleared is None or entry > cleared)
    }
    return ([] if cleared is None else [cleared]) + sorted(touched.values())[-n:]


def write_all(writer: Any, view: View, rows: Sequence[Row], slot: int) -> None:
    """Write the tiles of ``rows`` in every table of the view."""
    for table in view.tables:
        if rows:
            keys, columns, payloads = tile_columns(table, rows, slot)
            writer.write_tiles(table, view.join_keys, keys, columns, payloads)
