"""The newest ready-made row at many past instants, in numpy."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.folds import Ints
from headwater.plan import BatchView
from headwater.timeline import Queries, ranges

CREATED, EVENT_TIME = "_created", "_event_time"


def newest_rows(view: BatchView, rows: pa.Table, group: Ints, queries: Queries, known: bool) -> Ints:
    """Find the row of each query's group with the newest event time within [t - ttl, t]; int64 (q,), -1 for none.

    Ties go to the newer created time, then to the greater values, column by column. With ``known``, rows created after
    t do not count.

    Parameters
    ----------
    rows
        ``_event_time`` and ``_created`` (ms), the latter not where a row is created as it happens, and the columns.
    group : (rows,)
        Code of each row's keys from 0, -1 where one is null.
    """
    held = np.flatnonzero(group >= 0)
    time = rows[EVENT_TIME].to_numpy()[held]
    instants = _Instants(time, int(group.max(initial=0)) + 1)
    place = group[held] * instants.span + instants.rank(time)
    order = np.argsort(place)
    place = place[order]
    order = held[order]
    _settle_ties(view, rows, place, order)
    owner = queries.group * instants.span
    end = np.searchsorted(place, owner + instants.rank(queries.at + 1))
    start = np.searchsorted(place, owner + (instants.rank(queries.at - view.ttl_ms) if view.ttl_ms else 0))
    chosen = np.where(end > start, end - 1, -1)
    if known and CREATED in rows.column_names:
        created = rows[CREATED].to_numpy()[order]
        unknown = (chosen >= 0) & (np.r_[created, 0][chosen] > queries.at)
        chosen[unknown] = -1
        for query, row in ranges(start, np.where(unknown, end - start, 0)):
            visible = created[row] <= queries.at[query]
            chosen[query[visible]] = row[visible]  # rows ascend, so the last one visible stays
    chosen[queries.group < 0] = -1
    return np.where(chosen >= 0, np.r_[order, -1][chosen], -1).astype(np.int64)


class _Instants:
    """Ranks of instants in [0, span), so that ``group * span + rank`` sorts by group, then time, in one int64."""

    def __init__(self, time: Ints, groups: int) -> None:
        self._first = int(time.min()) if len(time) else 0
        self.span = (int(time.max()) if len(time) else 0) - self._first + 2
        self._distinct = np.unique(time) if groups * self.span >= 2**62 else None
        if self._distinct is not None:
            self.span = len(self._distinct) + 1

    def rank(self, instants: Ints) -> Ints:
        """How many ranks lie before each instant: milliseconds since the first or, in so long a history, times."""
        if self._distinct is not None:
            return np.searchsorted(self._distinct, instants).astype(np.int64)
        return np.clip(instants - self._first, 0, self.span - 1)


def _settle_ties(view: BatchView, rows: pa.Table, place: Ints, order: Ints) -> None:
    """Sort, in place, rows of one group and instant by created time, then by their values; nulls come first."""
    same = place[1:] == place[:-1]
    tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same]) if same.any() else np.empty(0, np.int64)
    if not len(tied):
        return
    names = [name for name in (CREATED, *(column.name for column in view.columns)) if name in rows.column_names]
    keys = pa.table({"_place": place[tied], **{name: rows[name].take(pa.array(order[tied])) for name in names}})
    ascending = [(name, "ascending") for name in keys.column_names]
    settled = pc.sort_indices(keys, sort_keys=ascending, null_placement="at_start").to_numpy()
    order[tied] = order[tied][settled.astype(np.int64)]
