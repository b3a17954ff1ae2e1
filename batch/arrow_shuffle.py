"""A shuffle that moves Arrow tables instead of rows.

Spark moves a row at a time: it is converted, hashed, sorted and converted back, some microseconds each. Here a task
cuts its rows into buckets by their keys, in numpy, and hands each bucket's part on as one binary value, so what Spark
sorts and moves is a few hundred values however many rows are in them. A bucket's parts meet in one worker, which holds
one bucket at a time.

::

    rows ──pack──► (_bucket, _side, _packed) ──groupBy _bucket──► a table a side ──answer──► rows
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headwater.folds import Ints

PACKED = "_bucket int, _side int, _packed binary"
_PACKED = pa.schema([("_bucket", pa.int32()), ("_side", pa.int32()), ("_packed", pa.binary())])
ROWS_PER_BUCKET = 250_000
FEWEST = 4
ROWS_PER_CUT = 500_000
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def buckets_for(rows: int) -> int:
    """How many buckets keep one at some 250,000 rows, if keys are many."""
    return max(FEWEST, -(-rows // ROWS_PER_BUCKET))


def pack(rows: pa.Table, keys: Sequence[str], side: int, buckets: int) -> Iterator[pa.RecordBatch]:
    """Cut rows by a hash of their keys, integers or strings; where a key is null, it does not matter where."""
    bucket = (key_hashes([rows[key] for key in keys]) % np.uint64(buckets)).astype(
        np.uint16 if buckets < 65_536 else np.int64
    )
    order = np.argsort(bucket, kind="stable")  # a radix sort, of so short an integer
    ends = np.cumsum(np.bincount(bucket, minlength=buckets))
    sorted_rows = rows.combine_chunks().take(pa.array(order))
    for at, (first, end) in enumerate(zip(np.r_[0, ends[:-1]].tolist(), ends.tolist(), strict=True)):
        if end > first:
            yield packed_batch(sorted_rows.slice(first, end - first), at, side)


def packed_rows(
    rows: Any, keys: Sequence[str], buckets: int, side: int = 0, without: Collection[int] = ()
) -> tuple[Any, pa.Schema]:
    """DataFrame of a DataFrame's rows in parts, but for the buckets ``without``, and the schema of what is packed."""
    from pyspark.sql.pandas.types import to_arrow_schema

    schema = pa.schema([pa.field(field.name, field.type) for field in to_arrow_schema(rows.schema)])

    def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table in _gathered(batches, schema):
            yield from (part for part in pack(table, keys, side, buckets) if part["_bucket"][0].as_py() not in without)

    return rows.mapInArrow(cut, PACKED), schema


def _gathered(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Batches put together until they have rows enough to be worth cutting."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(len(one) for one in held) >= ROWS_PER_CUT:
            yield pa.Table.from_batches(held).cast(schema)
            held = []
    if held:
        yield pa.Table.from_batches(held).cast(schema)


def packed_batch(rows: pa.Table, bucket: int = 0, side: int = 0) -> pa.RecordBatch:
    """One row that holds a table."""
    return pa.record_batch(
        [pa.array([bucket], pa.int32()), pa.array([side], pa.int32()), pa.array([_bytes(rows)])], _PACKED
    )


def answered(packed: Any, sides: Sequence[pa.Schema], answer: Callable[[int, list[pa.Table]], pa.Table]) -> Any:
    """DataFrame of packed answers: one table a bucket, from its table of each side, empty where it has none."""

    def of_bucket(parts: pa.Table) -> pa.Table:
        side, held = parts["_side"].to_numpy(), parts["_packed"]
        tables = [
            unpacked((held[at] for at in np.flatnonzero(side == number)), schema) for number, schema in enumerate(sides)
        ]
        return pa.Table.from_batches([packed_batch(answer(parts["_bucket"][0].as_py(), tables))])

    return packed.groupBy("_bucket").applyInArrow(of_bucket, PACKED)


def unpacked(parts: Iterator[pa.Scalar], schema: pa.Schema) -> pa.Table:
    """The table of a schema that was packed in parts, one chunk a column."""
    tables = [pa.ipc.open_stream(part.as_buffer()).read_all() for part in parts]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def rows_of(answers: Any, schema: pa.Schema) -> Any:
    """DataFrame of the rows of packed answers."""
    from pyspark.sql.pandas.types import from_arrow_schema

    def unpack(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for part in batch["_packed"]:
                yield from pa.ipc.open_stream(part.as_buffer()).read_all().to_batches(max_chunksize=100_000)

    return answers.mapInArrow(unpack, from_arrow_schema(schema))


def collected(answers: Any, schema: pa.Schema) -> pa.Table:
    """Table of the rows of packed answers, at the driver."""
    return unpacked(iter(answers.select("_packed").toArrow()["_packed"]), schema)


def _bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    held: bytes = sink.getvalue().to_pybytes()
    return held


def key_hashes(keys: Sequence[pa.ChunkedArray]) -> NDArray[np.uint64]:
    """Hash of each row's keys, uint64 (rows,); the same for the same keys on any machine."""
    total = np.zeros(len(keys[0]), np.uint64)
    for key in keys:
        whole = key.combine_chunks() if isinstance(key, pa.ChunkedArray) else key
        whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
        total = _mixed(total * _ODD ^ (_words(whole) if pa.types.is_string(whole.type) else _integers(whole)))
    return total


def _integers(values: pa.Array) -> NDArray[np.uint64]:
    held: NDArray[np.uint64] = values.fill_null(0).to_numpy().astype(np.int64).view(np.uint64)
    return held


def _words(texts: pa.Array) -> NDArray[np.uint64]:
    """Fold each string's bytes, eight at a time."""
    texts = texts.fill_null("")
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    padded = np.frombuffer((b"" if data is None else data.to_pybytes()) + bytes(8), np.uint8)
    start, length = ends[:-1].astype(np.int64), np.diff(ends)
    total = length.astype(np.uint64)
    for word in range(0, int(length.max(initial=0)), 8):
        rows = np.flatnonzero(length > word)
        bytes_ = padded[start[rows, None] + word + np.arange(8)].view("<u8")[:, 0]
        kept = np.minimum(length[rows] - word, 8).astype(np.uint64)
        bytes_ &= np.uint64(2**64 - 1) >> (np.uint64(64) - kept * np.uint64(8))
        total[rows] = _mixed(total[rows] ^ bytes_)
    return total


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(31))) * _MIX
    return value ^ (value >> np.uint64(29))


def codes_among(asked: Sequence[pa.ChunkedArray], rows: Sequence[pa.ChunkedArray]) -> tuple[Ints, Ints]:
    """Code each combination of keys asked from 0; of ``rows`` those not asked, as where a key is null, are -1.

    Returns
    ------
    int64 (asked,), int64 (rows,)
    """
    codes: tuple[Ints, Ints] | None = None
    for left, right in zip(asked, rows, strict=True):
        known = pc.unique(left).drop_null()
        places = _places(left, known), _places(right, known)
        codes = places if codes is None else _paired(codes, places, len(known))
    assert codes is not None
    return codes


def _paired(codes: tuple[Ints, Ints], places: tuple[Ints, Ints], width: int) -> tuple[Ints, Ints]:
    left, right = (
        np.where((code < 0) | (place < 0), -1, code * width + place) for code, place in zip(codes, places, strict=True)
    )
    known = pc.unique(pa.array(left[left >= 0]))
    return _places(pa.array(left), known), _places(pa.array(right), known)


def _places(values: Any, known: pa.Array) -> Ints:
    places = pc.index_in(values, value_set=known).fill_null(-1)
    return np.asarray(places).astype(np.int64)
