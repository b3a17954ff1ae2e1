"""Bytes of the online store, little-endian.

Tile blob: ``version u8 | newest event time i64 | records``, newest tile first. A record is a head and a payload: int64
partials for a fixed table, ``length u32 | entries`` for a list table. The mark of a tile is its head: how many events
are folded in, the newest ingest time among them, and the sum of their event-id hashes.

Row blob (ready-made features): ``kind u8 | event time i64 | created time i64 | null bitmap | fixed values | texts``; of
kind 2 without the created time, which is then the event time: most rows have no other, and it was a seventh of them.

The schema hash is in the field's name (the table's id), so values of two definitions never meet in one blob.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.online.replies import Blobs
from headwater.plan import BatchView, Partial, Table

VERSION = 1
DATED, PLAIN = 1, 2
"""Kinds of rows: with a created time of their own, and without."""
EVENT, _EVENT_ENDS = 1, 9
"""Where a row's event time lies."""
Ints = NDArray[np.int64]
BASE, LIVE = 0, 1
HEADER = struct.Struct("<Bq")
HEAD = [
    ("tile", "<i4"),
    ("slot", "u1"),
    ("count", "<u4"),
    ("newest", "<i8"),
    ("ingest", "<i8"),
    ("hash", "<u8"),
]
HEAD_SIZE = int(np.dtype(HEAD).itemsize)
EMPTY_MIN = np.iinfo(np.int64).max
EMPTY_MAX = np.iinfo(np.int64).min


_LAYOUTS: dict[str, np.dtype[Any]] = {}
"""By the id of a table, which is a hash of its schema."""


def record_dtype(table: Table) -> np.dtype[Any]:
    """Layout of a fixed table's record: the head, then one or two int64 a partial."""
    if table.id not in _LAYOUTS:
        _LAYOUTS[table.id] = _record_dtype(table)
    return _LAYOUTS[table.id]


def _record_dtype(table: Table) -> np.dtype[Any]:
    fields: list[Any] = list(HEAD)
    for partial in table.partials:
        if partial.kind == "sumsq":
            fields += [(partial.name + "_hi", "<i8"), (partial.name + "_lo", "<u8")]
        else:
            fields.append((partial.name, "<i8"))
    return np.dtype(fields)


Key = tuple[str, ...]


def pack_blobs(
    table: Table,
    keys: Sequence[Key],
    columns: Mapping[str, NDArray[Any]],
    payloads: Sequence[bytes] | None = None,
) -> tuple[list[Key], list[bytes] | NDArray[Any]]:
    """One blob an entity from rows in any order; of rows for one tile and slot the one that folded most stays.

    Parameters
    ----------
    keys : (n,)
    columns : each (n,)
        The head's fields and, for a fixed table, its partials by name.
    payloads : (n,)
        Packed entries, for a list table.

    Returns
    -------
    Distinct keys and their blobs, an array where every key has one record of a fixed length.
    """
    place: dict[Key, int] = {}
    owner = np.array([place.setdefault(key, len(place)) for key in keys], np.int64)
    rows = _newest_first(table, owner, columns)
    owner, heads = owner[rows], _heads(table, {name: values[rows] for name, values in columns.items()}, payloads)
    distinct = list(place)
    if payloads is None and len(owner) == len(distinct):
        single = np.empty(len(heads), [("version", "u1"), ("newest", "<i8"), ("record", heads.dtype)])
        single["version"], single["newest"], single["record"] = VERSION, heads["newest"], heads
        return distinct, single
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    newest = np.maximum.reduceat(heads["newest"], starts)
    bounds, raw = _records(heads, None if payloads is None else [payloads[row] for row in rows])
    edges = [*bounds[starts].tolist(), len(raw)]
    blobs = [
        HEADER.pack(VERSION, at) + raw[begin:end]
        for at, begin, end in zip(newest.tolist(), edges[:-1], edges[1:], strict=True)
    ]
    return [distinct[code] for code in owner[starts].tolist()], blobs


def _newest_first(table: Table, owner: Ints, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.intp]:
    """Rows to keep, by owner, then newest tile; what lies too far behind an owner's newest tile is left out."""
    tile, slot = np.asarray(columns["tile"], np.int64), np.asarray(columns["slot"], np.int64)
    order = np.lexsort((-np.asarray(columns["count"], np.int64), -slot, -tile, owner))
    owner, tile, slot = owner[order], tile[order], slot[order]
    entity = np.r_[True, owner[1:] != owner[:-1]]
    first = entity | np.r_[True, (tile[1:] != tile[:-1]) | (slot[1:] != slot[:-1])]
    newest = tile[np.flatnonzero(entity)][np.cumsum(entity) - 1]
    kept: NDArray[np.intp] = order[first & (tile >= newest - table.keep)]
    return kept


def _heads(table: Table, columns: Mapping[str, NDArray[Any]], payloads: Sequence[bytes] | None) -> NDArray[Any]:
    records = np.empty(len(columns["tile"]), record_dtype(table) if payloads is None else np.dtype(HEAD))
    for name in records.dtype.names or ():
        records[name] = columns[name]
    return records


def _records(heads: NDArray[Any], payloads: Sequence[bytes] | None) -> tuple[Ints, bytes]:
    """Where each record starts, and all of them joined."""
    size, raw = heads.dtype.itemsize, heads.tobytes()
    if payloads is None:
        return np.arange(len(heads)) * size, raw
    lengths = np.array([size + 4 + len(payload) for payload in payloads], np.int64)
    parts = [
        raw[at * size : (at + 1) * size] + struct.pack("<I", len(payload)) + payload
        for at, payload in enumerate(payloads)
    ]
    return np.cumsum(lengths) - lengths, b"".join(parts)


def neutral(partial: Partial) -> int:
    """What a partial holds where no value was folded."""
    return EMPTY_MIN if partial.kind == "min" else EMPTY_MAX if partial.kind == "max" else 0


Entry = tuple[int, str, str]
"""Event time, event id, value as canonical text; sorted, it is the total order."""


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """Entries of a tile in total order, oldest first."""
    packed = []
    for event_time, event_id, value in entries:
        name, text = event_id.encode(), value.encode()
        packed.append(struct.pack("<qHH", event_time, len(name), len(text)) + name + text)
    return b"".join(packed)


def unpack_entries(payload: bytes) -> list[Entry]:
    """Inverse of :func:`pack_entries`."""
    entries, at = [], 0
    while at < len(payload):
        event_time, name, text = struct.unpack_from("<qHH", payload, at)
        at += 12
        entries.append((event_time, payload[at : at + name].decode(), payload[at + name : at + name + text].decode()))
        at += name + text
    return entries


@dataclass(frozen=True, slots=True)
class ListTile:
    """One record of a list table."""

    tile: int
    slot: int
    count: int
    newest: int
    ingest: int
    hash: int
    payload: bytes


def unpack_list_tiles(blob: bytes) -> list[ListTile]:
    """All records of a list table's blob."""
    tiles, at = [], HEADER.size
    head = struct.Struct("<iBIqqQI")
    while at < len(blob):
        tile, slot, count, newest, ingest, digest, length = head.unpack_from(blob, at)
        at += head.size
        tiles.append(ListTile(tile, slot, count, newest, ingest, digest, blob[at : at + length]))
        at += length
    return tiles


BYTE, INT32, FLOAT32, INT64, FLOAT64 = 0, 1, 2, 3, 4
_ROW_TYPES = {
    "int32": ("<i4", INT32),
    "int64": ("<i8", INT64),
    "float32": ("<f4", FLOAT32),
    "float64": ("<f8", FLOAT64),
    "bool": ("u1", BYTE),
    "unixtimestamp": ("<i8", INT64),
}
"""Types of a row's fixed values, as numpy writes them and by the number that compiled loops tell them by."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The fixed part of a row: times, null bitmap, then the values in the view's order.

    ``dated`` is ``plain`` with a created time. ``fields`` has the field of each fixed column by its name. ``nulls`` is
    where the bitmap lies in a plain row; ``offsets, kinds`` (n_columns,): where the fixed columns do, and their types.
    """

    plain: np.dtype[Any]
    dated: np.dtype[Any]
    fields: Mapping[str, str]
    nulls: int
    offsets: Ints
    kinds: Ints


_ROW_LAYOUTS: dict[str, RowLayout] = {}
"""By the id of a view, which is a hash of its schema."""


def row_layout(view: BatchView) -> RowLayout:
    """Where each value of a view's row lies."""
    if view.id not in _ROW_LAYOUTS:
        _ROW_LAYOUTS[view.id] = _row_layout(view)
    return _ROW_LAYOUTS[view.id]


def _row_layout(view: BatchView) -> RowLayout:
    fixed = [column for column in view.columns if column.dtype in _ROW_TYPES]
    fields = {column.name: f"value{at}" for at, column in enumerate(fixed)}  # a column may be called "event"
    times: list[Any] = [("kind", "u1"), ("event", "<i8")]
    values: list[Any] = [("nulls", "u1", ((len(view.columns) + 7) // 8,))]
    values += [(fields[column.name], _ROW_TYPES[column.dtype][0]) for column in fixed]
    plain = np.dtype([*times, *values])
    offsets = np.array([offset_of(plain, field) for field in fields.values()], np.int64)
    kinds = np.array([_ROW_TYPES[column.dtype][1] for column in fixed], np.int64)
    dated = np.dtype([*times, ("created", "<i8"), *values])
    return RowLayout(plain, dated, fields, offset_of(plain, "nulls"), offsets, kinds)


def offset_of(layout: np.dtype[Any], field: str) -> int:
    """Where a field of a record begins."""
    assert layout.fields is not None
    return layout.fields[field][1]


def is_fixed(view: BatchView) -> bool:
    """True where every value has a fixed width, so that rows are packed and unpacked as one array."""
    return len(row_layout(view).fields) == len(view.columns)


def encode_rows(
    view: BatchView, event_ms: Ints, created_ms: Ints, columns: Mapping[str, NDArray[Any]]
) -> NDArray[Any] | list[bytes]:
    """Pack rows of a fixed view, an array where all are of one kind.

    Parameters
    ----------
    columns : each (n,)
        By name, NaN where there is no value.
    """
    layout = row_layout(view)
    own = created_ms != event_ms
    rows = np.zeros(len(event_ms), layout.dated if own.any() else layout.plain)
    rows["kind"], rows["event"] = PLAIN, event_ms
    if own.any():
        rows["kind"][own], rows["created"] = DATED, created_ms
    for at, column in enumerate(view.columns):
        values = columns[column.name]
        absent = np.isnan(values) if values.dtype.kind == "f" else None
        if absent is not None and absent.any():
            rows["nulls"][:, at // 8] |= absent.astype(np.uint8) << (at % 8)
            values = np.where(absent, 0, values)
        rows[layout.fields[column.name]] = values
    if own.any() and not own.all():
        return [_short(row.tobytes()) if row["kind"] == PLAIN else row.tobytes() for row in rows]
    return rows


def newest(tables: Sequence[Blobs]) -> Ints:
    """Newest event of each entity that was folded into any of some tables, int64 (n,), -1 where none was."""
    from headwater.online import kernels

    found = np.full(len(tables[0]), -1, np.int64)
    for blobs in tables:
        kernels.newer(blobs.raw, blobs.starts, blobs.sizes, found)
    return found


def decode_rows(view: BatchView, blobs: Blobs) -> tuple[Ints, dict[str, NDArray[np.float64]]]:
    """Event times (n,), -1 where there is no row, and float64 values by name, NaN where there is none; fixed views."""
    from headwater.online import kernels

    layout = row_layout(view)
    event, values = kernels.rows(
        blobs.raw, blobs.starts, blobs.sizes, layout.plain.itemsize, layout.nulls, layout.offsets, layout.kinds
    )
    return event, dict(zip(view.features, values, strict=True))


def _short(blob: bytes) -> bytes:
    """A row without the place of its created time."""
    return blob[:_EVENT_ENDS] + blob[_EVENT_ENDS + 8 :]


def encode_row(view: BatchView, event_ms: int, created_ms: int, values: Sequence[Any]) -> bytes:
    """Pack one ready-made row; ``None`` is a set bit in the null bitmap, other types travel as bytes with a length."""
    layout = row_layout(view)
    own = created_ms != event_ms
    row = np.zeros((), layout.dated if own else layout.plain)
    row["kind"], row["event"] = DATED if own else PLAIN, event_ms
    if own:
        row["created"] = created_ms
    tail = []
    for at, (column, value) in enumerate(zip(view.columns, values, strict=True)):
        if value is None:
            row["nulls"][at // 8] |= 1 << (at % 8)
        elif column.name in layout.fields:
            row[layout.fields[column.name]] = value
        if column.name not in layout.fields:
            raw = b"" if value is None else value if isinstance(value, bytes) else str(value).encode()
            tail.append(struct.pack("<I", len(raw)) + raw)
    return row.tobytes() + b"".join(tail)


def decode_row(view: BatchView, blob: bytes) -> tuple[int, int, list[Any]]:
    """Event time, created time and values; texts come back as bytes."""
    layout = row_layout(view)
    dtype = layout.dated if blob[0] == DATED else layout.plain
    row = np.frombuffer(blob, dtype, count=1)[0]
    values: list[Any] = []
    at = dtype.itemsize
    for index, column in enumerate(view.columns):
        null = bool(row["nulls"][index // 8] & (1 << (index % 8)))
        if column.name in layout.fields:
            values.append(None if null else row[layout.fields[column.name]].item())
        else:
            (length,) = struct.unpack_from("<I", blob, at)
            at += 4
            values.append(None if null else blob[at : at + length])
            at += length
    return int(row["event"]), int(row["created" if blob[0] == DATED else "event"]), values
