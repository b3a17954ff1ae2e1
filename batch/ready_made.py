"""Ready-made rows at the labels' instants: Parquet is read, cut and joined as Arrow tables from end to end.

Views with the same join keys are answered together, so a label is cut to its bucket once for all of them::

    labels.parquet ──read──► pack ─┐
    view.parquet   ──read──► pack ─┼─ by hash of the keys ──► newest row of each view ──► (_row, values of all)
    view.parquet   ──read──► pack ─┘

Keys are compared as the integers they are where a source has integers, and as strings elsewhere; a label's key meets
either, if it is written as that integer is. Where all of it is little, one task reads it and answers: moving it costs
Spark several times what answering does.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batch.arrow_shuffle import PACKED, answered, buckets_for, codes_among, pack, packed_batch, packed_rows, rows_of
from batch.labels import AT, ROW, Labels, entity_column
from batch.rows import CREATED, EVENT_TIME, newest_rows
from headwater.errors import DataError
from headwater.plan import BatchView
from headwater.timeline import Queries

ROWS_PER_TASK = 1_000_000
LITTLE = 64 << 20
"""Bytes, unpacked, of all that is read for an answer, and of the answer, that one task is given."""
Wanted = Mapping[str, Collection[str]]
Answer = Callable[[int, list[pa.Table]], pa.Table]


@dataclass(frozen=True, slots=True)
class Piece:
    """Row groups of one file of a side that one task reads."""

    side: int
    path: str
    groups: tuple[int, ...]
    rows: int
    size: int


@dataclass(frozen=True, slots=True)
class Side:
    """One input of the join: where it lies, how a piece of it is made a table, and that table's schema."""

    source: ds.Dataset
    schema: pa.Schema
    shape: Callable[[pa.Table], pa.Table]
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """Packed answers, one row a label, and the schema of what is packed: ``_row`` and ``<view>__<feature>``."""

    packed: Any
    schema: pa.Schema


def ready_made_answers(
    spark: Any, labels: Labels, views: Sequence[BatchView], wanted: Wanted, known: bool, name: Callable[[str, str], str]
) -> Iterator[Answers]:
    """Answer views, those with the same join keys together.

    Parameters
    ----------
    name
        Column of a view's feature in the answers.
    """
    together: dict[tuple[Any, ...], list[tuple[BatchView, ds.Dataset]]] = {}
    for view in views:
        source = open_parquet(view.path)
        kinds = tuple(_key_type(view, source.schema, key) for key in view.join_keys)
        together.setdefault((view.join_keys, kinds), []).append((view, source))
    for (keys, kinds), held in together.items():
        rows = [_rows_side(view, source, wanted[view.name], kinds, labels) for view, source in held]
        sides = [_labels_side(labels, keys, kinds), *rows]
        names = [{feature: name(view.name, feature) for feature in wanted[view.name]} for view, _ in held]
        schema = pa.schema([pa.field(ROW, pa.int64())] + [
            pa.field(named[feature], side.schema.field(feature).type)
            for side, named in zip(rows, names, strict=True) for feature in named
        ])  # fmt: skip
        answer = _answer([view for view, _ in held], names, known, len(keys), schema)
        yield Answers(_answered(spark, sides, [_key(at) for at in range(len(keys))], answer, schema), schema)


def batch_values(rows: Any, view: BatchView, questions: Any, features: Collection[str], known: bool) -> Any:
    """DataFrame of ``_row`` and the features' values in the newest of a DataFrame's rows, one row a question.

    Parameters
    ----------
    rows
        As :func:`batch.backfill.batch_rows` yields them.
    questions
        ``_row``, ``_at`` and the keys as strings, ``_key_0`` and so on.
    """
    keys = [_key(at) for at in range(len(view.join_keys))]
    buckets = buckets_for(open_parquet(view.path).count_rows())
    asking, asked_schema = packed_rows(questions.select(ROW, AT, *keys), keys, buckets, side=0)
    held, row_schema = packed_rows(rows, keys, buckets, side=1)
    schema = pa.schema([pa.field(ROW, pa.int64()), *(row_schema.field(feature) for feature in features)])
    answer = _answer([view], [{feature: feature for feature in features}], known, len(keys), schema)
    return rows_of(answered(asking.unionAll(held), [asked_schema, row_schema], answer), schema)


def open_parquet(path: str) -> ds.Dataset:
    """A Parquet file or folder.

    Raises
    ------
    DataError
        There is none.
    """
    try:
        return ds.dataset(path, format="parquet")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: {error}. The view's source names a Parquet file; write it first.") from None


def _answered(spark: Any, sides: Sequence[Side], keys: Sequence[str], answer: Answer, schema: pa.Schema) -> Any:
    """DataFrame of packed answers; a task reads some row groups of one side, or all of all where that is little."""
    pieces = [list(_pieces(number, side.source)) for number, side in enumerate(sides)]
    rows = [sum(piece.rows for piece in held) for held in pieces]
    read, schemas = _reader(sides), [side.schema for side in sides]
    answer_size = 8 * rows[0] * len(schema)
    if answer_size + sum(piece.size for held in pieces for piece in held) <= LITTLE:

        def answer_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for _ in batches:
                tables = [
                    pa.concat_tables([schema.empty_table(), *map(read, held)]).combine_chunks()
                    for schema, held in zip(schemas, pieces, strict=True)
                ]
                yield packed_batch(answer(0, tables))

        return spark.range(0, 1, 1, 1).mapInArrow(answer_all, PACKED)
    every, buckets = [piece for held in pieces for piece in held], buckets_for(max(rows))

    def pack_pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch["id"].to_pylist():
                yield from pack(read(every[number]), keys, every[number].side, buckets)

    packed = spark.range(0, len(every), 1, len(every)).mapInArrow(pack_pieces, PACKED)
    return answered(packed, schemas, answer)


def _reader(sides: Sequence[Side]) -> Callable[[Piece], pa.Table]:
    shapes = [(side.source.format, side.source.filesystem, side.shape, side.columns) for side in sides]

    def read(piece: Piece) -> pa.Table:
        format_, filesystem, shape, columns = shapes[piece.side]
        fragment = format_.make_fragment(piece.path, filesystem, row_groups=list(piece.groups))
        return shape(fragment.to_table(columns=list(columns)))

    return read


def _pieces(side: int, source: ds.Dataset) -> Iterator[Piece]:
    for fragment in source.get_fragments():
        before = accumulate((group.num_rows for group in fragment.row_groups), initial=0)
        numbered = [(first // ROWS_PER_TASK, group) for first, group in zip(before, fragment.row_groups, strict=False)]
        for _, task in groupby(numbered, itemgetter(0)):
            groups = [group for _, group in task]
            rows, size = (sum(getattr(group, of) for group in groups) for of in ("num_rows", "total_byte_size"))
            yield Piece(side, fragment.path, tuple(group.id for group in groups), rows, size)


def _labels_side(labels: Labels, keys: Sequence[str], kinds: Sequence[pa.DataType]) -> Side:
    """Row, instant and keys; a key is read as it was given where that is an integer and integers are wanted."""
    schema = pa.schema([pa.field(ROW, pa.int64()), pa.field(AT, pa.int64()), *_key_fields(kinds)])
    given = [
        key if pa.types.is_integer(kind) and pa.types.is_integer(labels.schema.field(key).type) else entity_column(key)
        for key, kind in zip(keys, kinds, strict=True)
    ]

    def shape(table: pa.Table) -> pa.Table:
        named = [table[name] for name in (ROW, AT)]
        typed = [as_key(table[name], kind) for name, kind in zip(given, kinds, strict=True)]
        return pa.table([*named, *typed], schema=schema)

    return Side(ds.dataset(labels.path, format="parquet"), schema, shape, (ROW, AT, *given))


def _rows_side(
    view: BatchView, source: ds.Dataset, features: Collection[str], kinds: Sequence[pa.DataType], labels: Labels
) -> Side:
    """Keys, times and columns of the rows that some label may see."""
    created = [view.created_field] if view.created_field else []
    needed = list(dict.fromkeys([*view.join_keys, view.timestamp_field, *created, *view.features]))
    missing = [name for name in needed if name not in source.schema.names]
    if missing:
        raise DataError(
            f"{view.name}: no column {', '.join(missing)} in {view.path}. Write it, or mend the view's schema."
        )
    times = [pa.field(EVENT_TIME, pa.int64())] + ([pa.field(CREATED, pa.int64())] if view.created_field else [])
    typed = [pa.field(name, _as_spark_knows(source.schema.field(name).type)) for name in view.features]
    schema = pa.schema(_key_fields(kinds) + times + typed)  # all columns, as ties go to the greater values
    oldest = labels.first_ms - view.ttl_ms if view.ttl_ms else None

    def shape(table: pa.Table) -> pa.Table:
        instants = [epoch_ms(table[view.timestamp_field])]
        if view.created_field:
            instants.append(pc.coalesce(epoch_ms(table[view.created_field]), instants[0]))
        keys = [as_key(table[key], kind) for key, kind in zip(view.join_keys, kinds, strict=True)]
        columns = [table[field.name].cast(field.type, safe=False) for field in typed]
        shaped = pa.table([*keys, *instants, *columns], schema=schema)
        seen = pc.less_equal(shaped[EVENT_TIME], labels.last_ms)
        if oldest is not None:
            seen = pc.and_(seen, pc.greater_equal(shaped[EVENT_TIME], oldest))
        return shaped if pc.all(seen.fill_null(False)).as_py() else shaped.filter(seen)

    return Side(source, schema, shape, tuple(needed))


def _answer(
    views: Sequence[BatchView], names: Sequence[Mapping[str, str]], known: bool, keys: int, schema: pa.Schema
) -> Answer:
    key_names = [_key(at) for at in range(keys)]

    def answer(_: int, tables: list[pa.Table]) -> pa.Table:
        asked, *sides = tables
        columns = [asked[ROW]]
        for view, named, rows in zip(views, names, sides, strict=True):
            asked_of, row_of = codes_among([asked[key] for key in key_names], [rows[key] for key in key_names])
            chosen = newest_rows(view, rows, row_of, Queries(asked_of, asked[AT].to_numpy()), known)
            index = pa.array(chosen, mask=chosen < 0)
            columns += [rows[feature].take(index) for feature in named]
        return pa.table(columns, schema=schema)

    return answer


def as_key(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Keys as int64 or string; a text that is not how an integer is written meets none, and becomes null."""
    if values.type == kind:
        return values
    if pa.types.is_string(kind) or pa.types.is_integer(values.type):
        return values.cast(kind)
    written = pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17})$")
    return pc.if_else(written, values, pa.scalar(None, pa.string())).cast(kind)


def epoch_ms(instants: pa.ChunkedArray) -> pa.ChunkedArray:
    """Milliseconds, rounded down; instants without a zone are UTC."""
    held = instants.type
    if not pa.types.is_timestamp(held):
        instants = instants.cast(pa.timestamp("us"))
        held = instants.type
    ticks = instants.cast(pa.int64())
    if held.unit == "s":
        return pc.multiply(ticks, 1000)
    per_ms = {"ms": 1, "us": 1_000, "ns": 1_000_000}[held.unit]
    if per_ms == 1:
        return ticks
    whole = pc.divide(ticks, per_ms)
    below = pc.less(ticks, pc.multiply(whole, per_ms))  # division rounds towards zero
    return pc.subtract(whole, below.cast(pa.int64()))


def _key_type(view: BatchView, schema: pa.Schema, key: str) -> pa.DataType:
    if key not in schema.names:
        raise DataError(f"{view.name}: no column {key} in {view.path}. Write it, or mend the view's entity.")
    held = schema.field(key).type
    return pa.int64() if pa.types.is_integer(held) and held != pa.uint64() else pa.string()


def _as_spark_knows(kind: pa.DataType) -> pa.DataType:
    """Instants in microseconds; texts and bytes with short offsets."""
    if pa.types.is_timestamp(kind) and kind.unit != "us":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_dictionary(kind):
        return _as_spark_knows(kind.value_type)
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def _key_fields(kinds: Sequence[pa.DataType]) -> list[pa.Field]:
    return [pa.field(_key(at), kind) for at, kind in enumerate(kinds)]


def _key(at: int) -> str:
    return f"_key_{at}"
