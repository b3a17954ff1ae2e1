"""The window semantics word for word, one event and one query at a time: what every engine must equal."""

import math
from bisect import bisect_left
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
    own.sort(key=lambda row: (row.event_time, row.event_id))
    return found, {
        a.feature: value(a, [row for row in own if row.event_time >= tail(a, t)], t) if found else None
        for a in view.aggregates
    }


def tail(aggregate: Aggregate, t: int) -> int:
    """First instant of the window that ends at t."""
    if aggregate.window_ms is None or aggregate.hop_ms is None:
        return 0
    return (t - aggregate.window_ms) // aggregate.hop_ms * aggregate.hop_ms


def value(aggregate: Aggregate, inside: Sequence[Row], t: int) -> Any:
    """A feature's value from the rows of its window, which lie in total order."""
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
        return folds.estimate(folds.sketch({str(one) for one in values}))
    if name in ("last", "last_distinct"):
        newest = list(reversed(values)) if name == "last" else list(dict.fromkeys(reversed(values)))
        return [one / scale if aggregate.kind == "fixed" else one for one in newest[: aggregate.function.n]]
    if name == "members":
        return replayed(values, aggregate.function.n or 0)
    return _decayed(aggregate, given, t, aggregate.hop_ms or 1)


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
        amount = 1 if aggregate.function.name == "decayed_count" else row.values[aggregate.column or ""]
        tiles[row.event_time // hop] = tiles.get(row.event_time // hop, 0) + amount
    total = 0.0
    for tile in sorted(tiles):
        age = t // hop - tile
        total += 2.0 ** (-(age * hop) / (aggregate.function.half_life_ms or 1)) * tiles[tile]
    fixed = aggregate.kind == "fixed" and aggregate.function.name == "decayed_sum"
    return total / 1_000_000 if fixed else total


class History:
    """The rows of one entity, asked at many instants: :func:`fold`, with each window's events folded once."""

    def __init__(self, view: View, rows: Sequence[Row]) -> None:
        self._view = view
        self.rows = sorted(rows, key=lambda row: (row.event_time, row.event_id))
        self._times = [row.event_time for row in self.rows]
        self._late = [at for at, row in enumerate(self.rows) if row.ingest_time > row.event_time]
        self._held: dict[tuple[Any, ...], Any] = {}

    @property
    def newest(self) -> int:
        """Time of the newest event, -1 where there is none."""
        return self._times[-1] if self._times else -1

    def at(self, t: int, known: bool = False) -> tuple[bool, list[Any]]:
        """Whether the entity is found at t, and its values in the view's order."""
        view, end = self._view, bisect_left(self._times, t)
        unknown = {at for at in self._late if at < end and self.rows[at].ingest_time >= t} if known else set()
        since = bisect_left(self._times, t - view.ttl_ms) if view.ttl_ms else 0
        if all(at in unknown for at in range(since, end)):
            return False, [None] * len(view.aggregates)
        return True, [self._window(aggregate, t, end, unknown) for aggregate in view.aggregates]

    def _window(self, aggregate: Aggregate, t: int, end: int, unknown: set[int]) -> Any:
        start = bisect_left(self._times, tail(aggregate, t))
        missing = tuple(sorted(at for at in unknown if at >= start))
        weighed_at = t // aggregate.hop_ms if aggregate.function.half_life_ms and aggregate.hop_ms else None
        place = (aggregate.feature, start, end, missing, weighed_at)
        if place not in self._held:
            inside = [row for at, row in enumerate(self.rows[start:end], start) if at not in unknown]
            self._held[place] = value(aggregate, inside, t)
        return self._held[place]
