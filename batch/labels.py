"""A label table as the point-in-time join reads it: numbered rows, keys as strings, instants in epoch milliseconds.

Rows are numbered in the order of the file; nothing is concatenated from keys, so (1, 11) and (11, 1) stay apart and
duplicate labels stay two rows.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from headwater.errors import DataError

ROW, AT = "_row", "_at"
EVENT_TIMESTAMP = "event_timestamp"


@dataclass(frozen=True, slots=True)
class Labels:
    """Numbered labels at ``path``: ``_row``, ``_at``, ``_entity_<key>`` and all columns as given (``schema``)."""

    path: Path
    rows: int
    first_ms: int
    last_ms: int
    schema: pa.Schema
    keys: tuple[str, ...]


def entity_column(key: str) -> str:
    """Name under which numbered labels hold a join key as a string."""
    return f"_entity_{key}"


def number_labels(source: Path | pa.Table, keys: Collection[str], target: Path, naive_is_utc: bool = False) -> Labels:
    """Copy a label table to ``target`` as the join reads it.

    Parameters
    ----------
    keys
        Join keys that the wanted features need.
    naive_is_utc
        Read instants without a zone as UTC, as Feast does, instead of refusing them.

    Raises
    ------
    DataError
        The file cannot be read, a join key or ``event_timestamp`` is missing, or the latter has no zone or no instant.
    """
    given = _open(source)
    if not given.schema.names:
        raise DataError(f"{source}: no Parquet file there. Give one, or a folder of them, of labels.")
    _check_names(given.schema, keys)
    for key in keys:
        _check_key(given.schema, key)
    _check_instants(given.schema, naive_is_utc)
    try:
        return _number(given, keys, target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, and not what is read
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"labels: {reason}. Mend the file, or write it anew.") from None


def _number(given: ds.Dataset, keys: Collection[str], target: Path) -> Labels:
    target.parent.mkdir(parents=True, exist_ok=True)
    rows, first, last = 0, 2**62, -1
    own = [pa.field(ROW, pa.int64()), pa.field(AT, pa.int64())]
    passed = pa.schema([_in_micros(field) for field in given.schema])
    schema = pa.schema([*own, *(pa.field(entity_column(key), pa.string()) for key in keys), *passed])
    with pq.ParquetWriter(target, schema) as writer:
        for batch in given.to_batches(batch_size=1 << 16):
            at = _instants(batch.column(EVENT_TIMESTAMP))
            if at.null_count:
                row = rows + int(pc.index(at.is_null(), True).as_py())
                raise DataError(f"labels: row {row} has no {EVENT_TIMESTAMP}. Fill it, or drop the row.")
            numbers = pa.array(np.arange(rows, rows + batch.num_rows))
            entities = [batch.column(key).cast(pa.string()) for key in keys]
            kept = [column.cast(field.type, safe=False) for column, field in zip(batch.columns, passed, strict=True)]
            writer.write_batch(pa.record_batch([numbers, at, *entities, *kept], schema=schema))
            rows += batch.num_rows
            if batch.num_rows:
                bounds = pc.min_max(at).as_py()
                first, last = min(first, bounds["min"]), max(last, bounds["max"])
    return Labels(target, rows, first if rows else 0, last if rows else 0, passed, tuple(keys))


def _open(source: Path | pa.Table) -> ds.Dataset:
    if isinstance(source, pa.Table):
        return ds.dataset(source)
    try:
        return ds.dataset(source, format="parquet")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source}: {error}. Give a Parquet file, or a folder of them, of labels.") from None


def _check_names(schema: pa.Schema, keys: Collection[str]) -> None:
    """Names that Spark would not tell apart, or that this table gives to columns of its own."""
    own = {ROW, AT, "label_row", *(entity_column(key) for key in keys)}
    seen: dict[str, str] = {}
    for field in schema:
        if field.name.lower() in {name.lower() for name in own}:
            raise DataError(f"labels: column {field.name!r} is one that the training set adds. Rename it.")
        other = seen.setdefault(field.name.lower(), field.name)
        if field.name != other or schema.names.count(field.name) > 1:
            raise DataError(f"labels: Spark does not tell columns {other!r} and {field.name!r} apart. Rename one.")
        if _is_foreign(field.type):
            raise DataError(f"labels: column {field.name!r} is {field.type}, which Spark cannot read. Cast or drop it.")


def _check_key(schema: pa.Schema, key: str) -> None:
    if key not in schema.names:
        raise DataError(f"labels: join key {key!r} is not among {', '.join(schema.names)}. Add the column.")
    kind = schema.field(key).type
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    is_name = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    if not (is_name or pa.types.is_null(kind)):  # an empty table often has no types
        raise DataError(
            f"labels: join key {key!r} is {kind}, and entities are named by strings or integers. Cast the column."
        )


def _is_foreign(kind: pa.DataType) -> bool:
    is_time: bool = pa.types.is_time(kind) or pa.types.is_float16(kind)
    return is_time or (pa.types.is_decimal(kind) and kind.precision > 38)


def _check_instants(schema: pa.Schema, naive_is_utc: bool) -> None:
    if EVENT_TIMESTAMP not in schema.names:
        raise DataError(f"labels: no column {EVENT_TIMESTAMP} among {', '.join(schema.names)}. Add one, in UTC.")
    kind = schema.field(EVENT_TIMESTAMP).type
    if pa.types.is_timestamp(kind) and (kind.tz is not None or naive_is_utc):
        return
    if not (pa.types.is_int64(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"labels: {EVENT_TIMESTAMP} is {kind}, which does not say which instant is meant. Make it a timestamp with "
            "a time zone, or int64 epoch milliseconds."
        )


def _in_micros(field: pa.Field) -> pa.Field:
    """Pass instants on as Spark knows them."""
    if field.name == EVENT_TIMESTAMP and pa.types.is_null(field.type):
        return field.with_type(pa.timestamp("us", "UTC"))
    if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
        return field.with_type(pa.timestamp("us", field.type.tz))
    return field


def _instants(column: pa.Array) -> pa.Array:
    """Epoch milliseconds, rounded up: an event before the exact instant is one before the millisecond after it."""
    if pa.types.is_int64(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.int64())
    nanos = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
    floor = pc.divide(nanos, 1_000_000)
    return pc.add(floor, pc.greater(nanos, pc.multiply(floor, 1_000_000)).cast(pa.int64()))
