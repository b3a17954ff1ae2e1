"""A few rows of a service, computed each from an archive that ends at its instant.

What the training set folds from the whole archive in one pass is folded here row by row, from nothing but the events
with ``event_time < t`` and ``ingest_time < t`` and the ready-made rows of at most t, created by t. So it is slow and
plain, and what differs from it knows what came later.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch.backfill import batch_rows, key_columns
from batch.events import bucketed, columns_of, group_codes, kernel_events, keys_of
from batch.labels import AT, ROW, Labels
from batch.point_in_time import archive_for, asked, check_service, floats
from batch.rows import newest_rows
from headwater import assemble
from headwater.folds import Ints
from headwater.offline_fold import fold_at
from headwater.plan import BatchView, FeaturePlan, View
from headwater.settings import Settings
from headwater.timeline import Queries

_LATE, _AHEAD = "_late", "_ahead"


@dataclass(frozen=True)
class Cut:
    """``values`` float32 (n, n_features) of ``rows`` (n,).

    By stored view, int64 (n,): how many of the entity's events (or ready-made rows) were ``late``, of before the
    instant but unknown then, and ``ahead``, of the instant or later.
    """

    rows: Ints
    at: Ints
    values: NDArray[np.float32]
    late: Mapping[str, Ints]
    ahead: Mapping[str, Ints]


def recompute(spark: Any, settings: Settings, plan: FeaturePlan, service: str, labels: Labels, rows: Ints) -> Cut:
    """Compute a service's features of some numbered labels."""
    wanted = assemble.needed(plan, service)
    chosen = spark.read.parquet(str(labels.path)).where(f"{ROW} IN ({', '.join(map(str, rows))})").persist()
    given = chosen.toArrow().sort_by(ROW)
    columns: dict[tuple[str, str], NDArray[np.float64]] = {}
    late, ahead = {}, {}
    archives: dict[str, Any] = {}
    for name, features in wanted.items():
        view = plan.view(name)
        assert isinstance(view, View | BatchView)
        questions = asked(chosen, view)
        if isinstance(view, View):
            if view.source not in archives:
                archives[view.source] = archive_for(spark, settings, plan, view.source, wanted, labels)
            events = archives[view.source].project(view, columns_of(view, features), ordered=False)
            found = _values(events, questions, keys_of(view), features, _fold_each(view, tuple(features)))
        else:
            rows_of = batch_rows(spark, view)
            found = _values(rows_of, questions, key_columns(view), features, _pick_each(view, tuple(features)))
        columns |= {(name, feature): floats(found[feature]) for feature in features}
        late[name], ahead[name] = found[_LATE].to_numpy(), found[_AHEAD].to_numpy()
    request = {name: given[name].to_numpy() for name in assemble.request_inputs(plan, service)}
    request[assemble.REQUEST_TIME] = given[AT].to_numpy()
    chosen.unpersist()
    matrix = assemble.matrix(plan, service, columns, request, given.num_rows)
    return Cut(given[ROW].to_numpy(), given[AT].to_numpy(), matrix, late, ahead)


def cut_rows(spark: Any, settings: Settings, plan: FeaturePlan, service: str, labels: Labels) -> Any:
    """:func:`batch.point_in_time.service_rows` as known, of a few labels: all of them are held here."""
    check_service(plan, service, labels)
    cut = recompute(spark, settings, plan, service, labels, np.arange(labels.rows))
    table = pq.read_table(labels.path, columns=[ROW, *labels.schema.names])
    for name, values in zip(plan.service(service).names, cut.values.T, strict=True):
        table = table.append_column(name, pa.array(values))
    return spark.createDataFrame(table)


def _values(
    held: Any, questions: Any, keys: list[str], features: Collection[str], answer: Callable[[pa.Table, pa.Table], Any]
) -> pa.Table:
    """One row a question, in their order."""
    entities = questions.select(*keys).distinct()
    theirs = held.join(entities.hint("broadcast"), keys, "left_semi")
    pairs = bucketed(questions, keys).cogroup(bucketed(theirs, keys))
    schema = ", ".join(
        [f"{ROW} bigint", *(f"`{name}` double" for name in features), f"{_LATE} bigint, {_AHEAD} bigint"]
    )
    found: pa.Table = pairs.applyInArrow(answer, schema).toArrow().sort_by(ROW)
    return found


def _fold_each(view: View, features: tuple[str, ...]) -> Callable[[pa.Table, pa.Table], pa.Table]:
    def answer(questions: pa.Table, rows: pa.Table) -> pa.Table:
        keys = keys_of(view)
        asked_of, event_of = group_codes([questions[key] for key in keys], [rows[key] for key in keys])
        events = kernel_events(rows, np.zeros(len(event_of), np.int64), columns_of(view, features))
        told = _Answers(questions, features)
        for group, at in zip(asked_of.tolist(), questions[AT].to_pylist(), strict=True):
            own = (event_of == group) & (group >= 0)
            before = own & (events.event_time < at)
            known = before & (events.ingest_time < at)
            one = Queries(np.zeros(1, np.int64), np.array([at], np.int64))
            values = fold_at(view, events.take(np.flatnonzero(known)), one, known=False, features=features).values
            told.add([values[name][0] for name in features], before.sum() - known.sum(), own.sum() - before.sum())
        return told.table()

    return answer


def _pick_each(view: BatchView, features: tuple[str, ...]) -> Callable[[pa.Table, pa.Table], pa.Table]:
    def answer(questions: pa.Table, rows: pa.Table) -> pa.Table:
        keys = key_columns(view)
        asked_of, row_of = group_codes([questions[key] for key in keys], [rows[key] for key in keys])
        event, created = rows["_event_time"].to_numpy(), rows["_created"].to_numpy()
        columns = [floats(rows[name]) for name in features]
        told = _Answers(questions, features)
        for group, at in zip(asked_of.tolist(), questions[AT].to_pylist(), strict=True):
            own = (row_of == group) & (group >= 0)
            before = own & (event <= at)
            known = np.flatnonzero(before & (created <= at))
            one = Queries(np.zeros(1, np.int64), np.array([at], np.int64))
            (newest,) = newest_rows(view, rows.take(known), np.zeros(len(known), np.int64), one, known=False)
            values = [column[known[newest]] if newest >= 0 else np.nan for column in columns]
            told.add(values, before.sum() - len(known), own.sum() - before.sum())
        return told.table()

    return answer


class _Answers:
    """Values and counts, one question after the other."""

    def __init__(self, questions: pa.Table, features: tuple[str, ...]) -> None:
        self._questions, self._features = questions, features
        self._rows: list[tuple[float, ...]] = []

    def add(self, values: list[Any], late: Any, ahead: Any) -> None:
        self._rows.append((*(float(value) for value in values), int(late), int(ahead)))

    def table(self) -> pa.Table:
        columns = list(zip(*self._rows, strict=True)) or [()] * (len(self._features) + 2)
        kinds = [pa.float64()] * len(self._features) + [pa.int64()] * 2
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        return pa.table([self._questions[ROW], *arrays], names=[ROW, *self._features, _LATE, _AHEAD])
