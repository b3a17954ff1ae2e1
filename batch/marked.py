"""A view's values for questions with marks: of each, the events that had been folded are found, and folded again."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch.events import Archive, bucketed, columns_of, group_codes, kernel_events, keys_of
from batch.folded import Verdict, Wanted, judge, longest_start
from batch.served import AT, ROW
from headwater.folds import Ints
from headwater.offline_fold import Values, fold_windows
from headwater.plan import Table, View
from headwater.timeline import PAIRS, Events, Queries, Timeline

_FEW = 200_000
"""Logged rows whose entities each worker can hold as a set."""


def marked_values(archive: Archive, view: View, asked: Any, fresh_ms: int, count: int) -> Any:
    """DataFrame of ``_row``, the features that are numbers, and each table's state and first missing event."""
    numbers = tuple(aggregate.feature for aggregate in view.aggregates if not aggregate.is_list)
    projected = archive.project(view, columns_of(view, numbers))
    if count <= _FEW:
        entities = asked.select(*keys_of(view)).distinct()
        projected = projected.join(entities.hint("broadcast"), keys_of(view), "left_semi")
    told = [f"`{table.id}_state` tinyint, `{table.id}_missing` string" for table in view.tables]
    schema = ", ".join([f"{ROW} bigint", *(f"`{name}` double" for name in numbers), *told])
    pairs = bucketed(asked, keys_of(view)).cogroup(bucketed(projected, keys_of(view)))
    return pairs.applyInArrow(_bucket(view, numbers, fresh_ms), schema)


def _bucket(view: View, numbers: tuple[str, ...], fresh_ms: int) -> Callable[[pa.Table, pa.Table], pa.Table]:
    def fold(asked: pa.Table, events: pa.Table) -> pa.Table:
        keys = keys_of(view)
        asked_of, event_of = group_codes([asked[key] for key in keys], [events[key] for key in keys])
        kernel = kernel_events(events, event_of, columns_of(view, numbers)).take(np.flatnonzero(event_of >= 0))
        timeline = Timeline(kernel.sorted(), Queries(asked_of, asked[AT].to_numpy()), known=True)
        verdicts = {table.id: judge(view, table, timeline, _wanted(asked, table), fresh_ms) for table in view.tables}
        found = _found(view, timeline, verdicts)
        values = fold_windows(view, timeline, found, numbers)
        for table in view.tables:
            _refold(view, table, timeline, verdicts[table.id], found, values)
        columns: dict[str, Any] = {ROW: asked[ROW], **{name: pa.array(values[name]) for name in numbers}}
        for name, verdict in verdicts.items():
            missing = pa.array([verdict.missing.get(query) for query in range(len(timeline))], pa.int64())
            columns |= {
                f"{name}_state": pa.array(verdict.state.astype(np.int8)),
                f"{name}_missing": timeline.events.event_id.take(missing),
            }
        return pa.table(columns)

    return fold


def _wanted(asked: pa.Table, table: Table) -> Wanted:
    count, digest = asked[f"{table.id}_count"], asked[f"{table.id}_hash"].fill_null(0)
    logged = count.is_valid().to_numpy()
    return Wanted(count.fill_null(0).to_numpy(), digest.to_numpy().view(np.uint64), logged)


def _found(view: View, timeline: Timeline, verdicts: Mapping[str, Verdict]) -> NDArray[np.bool_]:
    """Whether an event lies in the ttl: one that some table had folded, since the reader asks them all."""
    times, every = timeline.events.event_time, np.ones(len(timeline.events), np.bool_)
    first = timeline.since(None)
    query, event = timeline.newest(first, every, 1)
    latest = np.full(len(timeline), -1, np.int64)
    latest[query] = times[event]
    newest = np.full(len(timeline), -1, np.int64)
    for table in view.tables:
        known, start = latest.copy(), longest_start(view, table, timeline)
        for place, rows in verdicts[table.id].rows.items():
            older = int(start[place]) - 1  # what no window reads any more was folded long ago
            last = int(rows[-1]) if len(rows) else older if older >= first[place] else -1
            known[place] = -1 if last < 0 else times[last]
        newest = np.maximum(newest, known)
    oldest = timeline.queries.at - view.ttl_ms if view.ttl_ms else np.zeros(len(timeline), np.int64)
    return (newest >= 0) & (newest >= oldest)


def _refold(
    view: View, table: Table, timeline: Timeline, verdict: Verdict, found: NDArray[np.bool_], values: dict[str, Values]
) -> None:
    """Fold again where other events were folded than were known: each such question has a copy of its own events."""
    features = [a.feature for a in view.aggregates if a.table == table.id and a.feature in values]
    for places in _parts(verdict.rows):
        held = [verdict.rows[place] for place in places]
        own: Events = timeline.events.take(np.concatenate([np.empty(0, np.int64), *held]))
        group = np.repeat(np.arange(len(places)), [len(rows) for rows in held])
        events = Events(group, own.event_time, own.ingest_time, own.event_id, own.columns)
        queries = Queries(np.arange(len(places)), timeline.queries.at[places])
        folded = fold_windows(view, Timeline(events, queries, known=False), found[places], features)
        for name in features:
            np.asarray(values[name])[places] = folded[name]


def _parts(rows: Mapping[int, Ints]) -> Iterator[list[int]]:
    """Questions whose events together are a bounded number."""
    part, size = [], 0
    for place, held in rows.items():
        part.append(place)
        size += len(held)
        if size >= PAIRS:
            yield part
            part, size = [], 0
    if part:
        yield part
