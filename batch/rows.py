"""The newest ready-made row at many past instants, in numpy."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.folds import Ints
from headwater.plan import BatchView
from headwater.timeline import Queries, ranges


def newest_rows(view: BatchView, rows: pa.Table, group: Ints, queries: Queries, known: bool) -> Ints:
    """Find the row of each query's group with the newest event time within [t - ttl, t]; int64 (q,), -1 for none.

    Ties go to the newer created time, then to the greater values, column by column. With ``known``, rows created after
    t do not count.

    Parameters
    ----------
    rows
        As :func:`batch.backfill.batch_rows` yields them.
    group : (rows,)
        Code of each row's keys, -1 where one is null.
    """
    ties = [column.name for column in view.columns]
    keys = pa.table({"_group": group, **{name: rows[name] for name in ("_event_time", "_created", *ties)}})
    ascending = [(name, "ascending") for name in keys.column_names]
    order = pc.sort_indices(keys, sort_keys=ascending, null_placement="at_start").to_numpy().astype(np.int64)
    group, time, created = group[order], _ints(rows["_event_time"])[order], _ints(rows["_created"])[order]
    times = np.unique(time)
    span = len(times) + 1
    place = group * span + np.searchsorted(times, time)
    end = np.searchsorted(place, queries.group * span + np.searchsorted(times, queries.at, "right"))
    oldest = queries.at - view.ttl_ms if view.ttl_ms else np.full(len(queries.at), np.iinfo(np.int64).min)
    start = np.searchsorted(place, queries.group * span + np.searchsorted(times, oldest))
    chosen = np.where(end > start, end - 1, -1)
    if known:
        unknown = (chosen >= 0) & (np.r_[created, 0][chosen] > queries.at)
        chosen[unknown] = -1
        for query, row in ranges(start, np.where(unknown, end - start, 0)):
            visible = created[row] <= queries.at[query]
            chosen[query[visible]] = row[visible]  # rows ascend, so the last one visible stays
    chosen[queries.group < 0] = -1
    return np.where(chosen >= 0, np.r_[order, -1][chosen], -1).astype(np.int64)


def _ints(column: pa.ChunkedArray) -> Any:
    return column.to_numpy()
