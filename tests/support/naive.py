"""The window semantics word for word, one event and one query at a time: what every engine must equal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwater import folds
from headwater.plan import Aggregate, View


@dataclass(frozen=True)
class Row:
    """A projected event; values are integers (millionths where fractional), strings or None."""

    event_id: str
    event_time: int
    ingest_time: int
    key: tuple[str, ...]
    values: dict[str, Any]


def fold(view: View, rows: Sequence[Row], key: tuple[str, ...], t: int, known: bool) -> tuple[bool, dict[str, Any]]:
    """Whether the entity is found at t, and each feature's value, None where there is none."""
    own = [row for row in rows if row.key == key and row.event_time < t and (not known or row.ingest_time < t)]
    found = any(view.ttl_ms == 0 or row.event_time >= t - view.ttl_ms for row in own)
    return found, {a.feature: _value(a, own, t) if found else None for a in view.aggregates}


def _value(aggregate: Aggregate, own: Sequence[Row], t: int) -> Any:
    hop = aggregate.hop_ms
    if aggregate.window_ms is None or hop is None:
        inside = list(own)
    else:
        tail = (t - aggregate.window_ms) // hop * hop
        inside = [row for row in own if row.event_time >= tail]
    inside.sort(key=lambda row: (row.event_time, row.event_id))
    column, name = aggregate.column, aggregate.function.name
    given = [row for row in inside if column is None or row.values[column] is not None]
    values = [row.values[column] for row in given] if column is not None else []
    scale = 1_000_000 if aggregate.kind == "fixed" else 1
    if name == "count":
        return float(len(given))
    if name == "sum":
        return sum(values) / scale
    if name == "mean":
        return sum(values) / scale / len(values) if values else None
    if name == "min":
        return min(values) / scale if values else None
    if name == "max":
        return max(values) / scale if values else None
    if name == "stddev":
        n = len(values)
        if n < 2:
            return None
        return math.sqrt((n * sum(v * v for v in values) - sum(values) ** 2) / (n * (n - 1))) / scale
    if name == "approx_count_distinct":
        return folds.estimate(folds.sketch({str(value) for value in values}))
    if name in ("last", "last_distinct"):
        newest = list(reversed(values)) if name == "last" else list(dict.fromkeys(reversed(values)))
        return [value / scale if aggregate.kind == "fixed" else value for value in newest[: aggregate.function.n]]
    if name == "members":
        return replayed(values, aggregate.function.n or 0)
    return _decayed(aggregate, given, t, hop or 1)


def replayed(operations: Sequence[str], n: int) -> list[str]:
    """Replay a cart: of the n values that were touched last since it was cleared, those that are in it."""
    touched: dict[str, bool] = {}
    for operation in operations:
        verb, colon, value = operation.partition(":")
        if operation == "clear":
            touched = {}
        elif colon and verb in ("add", "remove"):
            touched.pop(value, None)
            touched[value] = verb == "add"
    return sorted(value for value, held in list(touched.items())[-n:] if held)


def _decayed(aggregate: Aggregate, given: Sequence[Row], t: int, hop: int) -> float:
    tiles: dict[int, int] = {}
    for row in given:
        amount = 1 if aggregate.function.name == "decayed_count" else row.values[aggregate.column]
        tiles[row.event_time // hop] = tiles.get(row.event_time // hop, 0) + amount
    total = 0.0
    for tile in sorted(tiles):
        age = t // hop - tile
        total += 2.0 ** (-(age * hop) / (aggregate.function.half_life_ms or 1)) * tiles[tile]
    fixed = aggregate.kind == "fixed" and aggregate.function.name == "decayed_sum"
    return total / 1_000_000 if fixed else total
