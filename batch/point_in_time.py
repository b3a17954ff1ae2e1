"""The point-in-time join: exactly one row a label, each feature as it was, or was known, at the label's instant.

::

    labels ──number──► (row, at, keys) ──┐ by hash of the keys
    archive ──projection of a view──────►┤ kernel ──► (row, the view's values)  ─┐
    Parquet of a ready-made view ───────►┤ newest ──► (row, the row's values)  ──┤ join by row ──► a service's matrix

Both sides of a view are cut into buckets by a hash of its join keys (:mod:`batch.arrow_shuffle`), and the kernel
answers one bucket at a time, its labels some at a time, so what a worker holds is bounded by the largest bucket's
events. On-demand features and defaults are :mod:`headwater.assemble`'s,
the same code as in serving.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch.arrow_shuffle import answered, buckets_for, codes_among, collected, packed_rows, rows_of
from batch.events import Archive, archive_of, columns_of, kernel_events, keys_of, since_of
from batch.labels import AT, ROW, Labels, entity_column
from batch.ready_made import Answers, ready_made_answers
from headwater import assemble
from headwater.errors import DataError
from headwater.folds import Ints
from headwater.offline_fold import Values, fold_at
from headwater.plan import BatchView, FeaturePlan, View
from headwater.settings import Settings
from headwater.timeline import Events, Queries

PIECE = 100_000
"""Labels that the kernel answers at a time; a key that everybody has may have more."""
FEW = 50_000
"""Labels whose entities each worker can hold as a set."""
NEWEST, FOUND = "_newest", "_found"
_ARROW_LISTS = {"string": pa.list_(pa.string()), "int": pa.list_(pa.int64()), "fixed": pa.list_(pa.float64())}


def column_name(view: str, feature: str) -> str:
    """Name of a feature's column in the joined table."""
    return f"{view}__{feature}"


def join_views(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    labels: Labels,
    wanted: Mapping[str, Collection[str]],
    known: bool,
) -> Any:
    """DataFrame of the numbered labels and the wanted features, ``<view>__<feature>``; one row a label.

    Parameters
    ----------
    wanted
        Stored views (windowed or ready-made) and the features wanted of each.
    known
        As known at the label's instant; otherwise as of it, late arrivals included.
    """
    joined = spark.read.parquet(str(labels.path))
    for values in _values(spark, settings, plan, labels, wanted, known):
        rows = rows_of(values.packed, values.schema) if isinstance(values, Answers) else values
        joined = joined.join(rows, ROW)
    return joined


def joined_table(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    labels: Labels,
    wanted: Mapping[str, Collection[str]],
    known: bool,
) -> pa.Table:
    """:func:`join_views` at the driver, in the labels' order: nothing is joined or sorted, as rows are numbered."""
    joined = pq.read_table(labels.path)
    for values in _values(spark, settings, plan, labels, wanted, known):
        found = collected(values.packed, values.schema) if isinstance(values, Answers) else values.toArrow()
        place = np.empty(labels.rows, np.int64)
        place[found[ROW].to_numpy()] = np.arange(found.num_rows)
        for name in found.column_names[1:]:
            joined = joined.append_column(name, found[name].combine_chunks().take(pa.array(place)))
    return joined


def _values(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    labels: Labels,
    wanted: Mapping[str, Collection[str]],
    known: bool,
) -> Iterator[Any]:
    """A DataFrame a windowed view, and packed answers of ready-made ones: ``_row`` and ``<view>__<feature>``."""
    views = [plan.view(name) for name in wanted]
    archives: dict[str, Archive] = {}
    for view in views:
        if not isinstance(view, View | BatchView):
            raise DataError(
                f"{view.name}: an on-demand view is computed from stored ones, not read. Ask for its inputs."
            )
        if isinstance(view, View):
            if view.source not in archives:
                archives[view.source] = archive_for(spark, settings, plan, view.source, wanted, labels)
            questions, features = asked(spark.read.parquet(str(labels.path)), view), wanted[view.name]
            values = view_values(archives[view.source], view, questions, features, known, few=labels.rows <= FEW)
            yield values.selectExpr(ROW, *(f"`{name}` AS `{column_name(view.name, name)}`" for name in features))
    ready = [view for view in views if isinstance(view, BatchView)]
    yield from ready_made_answers(spark, labels, ready, wanted, known, column_name)


def service_rows(
    spark: Any, settings: Settings, plan: FeaturePlan, service: str, labels: Labels, known: bool = True
) -> Any:
    """DataFrame of the labels' columns and a service's float32 features, in its order; ``_row`` numbers the labels.

    Raises
    ------
    DataError
        As :func:`check_service`.
    """
    wanted = assemble.needed(plan, service)
    check_service(plan, service, labels)
    joined = join_views(spark, settings, plan, labels, wanted, known)
    kept = [ROW, *labels.schema.names]
    types = {field.name: field.dataType.simpleString() for field in joined.schema.fields}
    schema = ", ".join(
        [f"`{name}` {types[name]}" for name in kept] + [f"`{name}` float" for name in plan.service(service).names]
    )
    return joined.mapInArrow(_assembler(plan, service, wanted, kept), schema)


def asked(numbered: Any, view: View | BatchView) -> Any:
    """DataFrame of what a view is asked: row, instant, and its join keys as strings."""
    keys = (f"`{entity_column(key)}` AS _key_{at}" for at, key in enumerate(view.join_keys))
    return numbered.selectExpr(ROW, AT, *keys)


def view_values(
    archive: Archive, view: View, questions: Any, features: Collection[str], known: bool, few: bool = False
) -> Any:
    """DataFrame of ``_row``, the features' values, ``_found`` and ``_newest``, one row a question.

    Where the questions are ``few``, events of other entities are left out before anything is shuffled.
    """
    kinds = {aggregate.feature: aggregate for aggregate in view.aggregates}
    lists = any(kinds[name].is_list for name in features)
    projected = archive.project(view, columns_of(view, features), ordered=lists)
    if few:
        entities = questions.select(*keys_of(view)).distinct()
        projected = projected.join(entities.hint("broadcast"), keys_of(view), "left_semi")
    buckets = buckets_for(archive.count)
    asking, asked_schema = packed_rows(questions, keys_of(view), buckets, side=0)
    events, event_schema = packed_rows(projected, keys_of(view), buckets, side=1)
    typed = [(name, _ARROW_LISTS[kinds[name].kind] if kinds[name].is_list else pa.float64()) for name in features]
    schema = pa.schema([(ROW, pa.int64()), *typed, (FOUND, pa.bool_()), (NEWEST, pa.int64())])
    answer = _view_bucket(view, tuple(features), known, PIECE, schema)
    return rows_of(answered(asking.unionAll(events), [asked_schema, event_schema], answer), schema)


def archive_for(
    spark: Any, settings: Settings, plan: FeaturePlan, source: str, wanted: Collection[str], labels: Labels
) -> Archive:
    """Archive of a source, pruned to the dates that some wanted view can read for some label."""
    views = [view for view in plan.views if view.name in wanted and view.source == source]
    oldest = [since_of(view, labels.first_ms) for view in views]
    since = None if None in oldest else min(bound for bound in oldest if bound is not None)
    return archive_of(spark, settings, plan, source, since_ms=since, until_ms=labels.last_ms)


def _view_bucket(
    view: View, features: tuple[str, ...], known: bool, piece: int, schema: pa.Schema
) -> Callable[[int, list[pa.Table]], pa.Table]:
    kinds = {aggregate.feature: aggregate.kind for aggregate in view.aggregates}

    def fold(_: int, sides: list[pa.Table]) -> pa.Table:
        questions, rows = sides
        keys = keys_of(view)
        asked_of, event_of = codes_among([questions[key] for key in keys], [rows[key] for key in keys])
        held = np.flatnonzero(event_of >= 0)
        events = kernel_events(rows, event_of, columns_of(view, features)).take(held).sorted()
        return pa.concat_tables([
            answer(questions.slice(first, piece), asked_of[first : first + piece], events)
            for first in range(0, len(questions), piece)
        ] or [schema.empty_table()])  # fmt: skip

    def answer(questions: pa.Table, asked_of: Ints, events: Events) -> pa.Table:
        queries, place = _distinct(asked_of, questions[AT].to_numpy())
        folded = fold_at(view, events, queries, known, features)
        values = [_arrow(folded.values[name], kinds[name], place) for name in features]
        found, newest = pa.array(folded.found[place]), pa.array(folded.newest[place])
        return pa.table([questions[ROW], *values, found, newest], schema=schema)

    return fold


def _distinct(group: Ints, at: Ints) -> tuple[Queries, NDArray[np.intp]]:
    """Distinct (group, instant) pairs, and the place of each question among them."""
    instants, rank = np.unique(at, return_inverse=True)
    codes, place = np.unique(group * len(instants) + rank, return_inverse=True)
    return Queries(codes // max(len(instants), 1), instants[codes % max(len(instants), 1)]), place


def _arrow(values: Values, kind: str, place: NDArray[np.intp]) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, _ARROW_LISTS[kind]).take(pa.array(place))
    return pa.array(values[place])


def check_service(plan: FeaturePlan, service: str, labels: Labels) -> None:
    """Refuse a service whose rows cannot be made of these labels.

    Raises
    ------
    DataError
        The service holds a list or a feature named as one of the labels' columns, or a request input is not there.
    """
    for name, features in assemble.needed(plan, service).items():
        view = plan.view(name)
        lists = (
            [a.feature for a in view.aggregates if a.is_list and a.feature in features]
            if isinstance(view, View)
            else []
        )
        if lists:
            raise DataError(f"{name}:{lists[0]} is a list and has no place in a matrix. Take it out of {service}.")
    for name in assemble.request_inputs(plan, service):
        if name not in labels.schema.names:
            raise DataError(f"labels: request input {name!r} of service {service} is missing. Add the column.")
    clash = set(plan.service(service).names) & set(labels.schema.names)
    if clash:
        raise DataError(f"labels: {', '.join(sorted(clash))} is also a feature of {service}. Rename the column.")


def _assembler(
    plan: FeaturePlan, service: str, wanted: Mapping[str, Collection[str]], kept: list[str]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    inputs = assemble.request_inputs(plan, service)

    def assemble_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            columns = {
                (view, feature): floats(batch.column(column_name(view, feature)))
                for view, features in wanted.items()
                for feature in features
            }
            request = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in inputs}
            request[assemble.REQUEST_TIME] = batch.column(AT).to_numpy()
            matrix = assemble.matrix(plan, service, columns, request, batch.num_rows)
            features = {name: pa.array(matrix[:, at]) for at, name in enumerate(plan.service(service).names)}
            yield pa.RecordBatch.from_pydict({name: batch.column(name) for name in kept} | features)

    return assemble_batches


def floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Values as float64, NaN where null, instants in epoch seconds as Feast has them."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    cast = column.cast(pa.float64())
    values = cast.to_numpy() if isinstance(cast, pa.ChunkedArray) else cast.to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64)
