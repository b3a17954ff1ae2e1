"""What was served, laid out for the audit: archived impressions as questions to each view, and the logged vectors.

::

    asked-<view>.parquet   _row, _at, _key_0 …, and by table <id>_count, <id>_hash (wrapped to int64)
    served-<n>.parquet     request_id, time, item_id, logged (float32 list), and question by view, _ask_<view>

A question is one entity of one view at one instant, as one reply asked it; every logged row refers to its own. Vectors
of one service, schema and list of names share a file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headwater import topics
from headwater.archive_files import date_at, live_files
from headwater.errors import DataError
from headwater.plan import BatchView, FeaturePlan, View
from headwater.settings import Settings
from streaming.parquet_log import read_manifest

ROW, AT = "_row", "_at"
HELD = 50_000
"""Rows held before they are written."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What vectors of one file are: of which service, under which schema hash, of which features."""

    service: str
    schema_hash: str
    names: tuple[str, ...]


@dataclass(slots=True)
class Served:
    """``vectors``: files by what is in them. ``asked``: files by view. ``unmarked``: impressions without marks."""

    impressions: int = 0
    rows: int = 0
    unmarked: int = 0
    first_ms: int = 2**62
    last_ms: int = -1
    vectors: dict[Layout, Path] = field(default_factory=dict)
    asked: dict[str, Path] = field(default_factory=dict)


def ask_column(view: str) -> str:
    """Column of the vectors that holds the number of the question a view was asked for each."""
    return f"_ask_{view}"


def lay_out(settings: Settings, plan: FeaturePlan, folder: Path, since_ms: int, until_ms: int) -> Served:
    """Read the archived impressions with ``since_ms <= time < until_ms`` whose replies had features.

    Raises
    ------
    DataError
        No impressions have been archived.
    """
    served = Served()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as open_files:
        views: list[View | BatchView] = [*plan.views, *plan.batch_views]
        asked = {view.name: _Rows(_asked_schema(view), open_files) for view in views}
        vectors: dict[Layout, _Rows] = {}
        for told in impressions(settings):
            if not since_ms <= told["time"] < until_ms or not told["views"]:
                continue
            if any("keys" not in view for view in told["views"].values()):
                served.unmarked += 1
                continue
            layout = Layout(told["feature_service"], told["feature_schema"], tuple(told["feature_names"]))
            if layout not in vectors:
                vectors[layout] = _Rows(_served_schema(asked), open_files)
                served.vectors[layout] = folder / f"served-{len(vectors)}.parquet"
            numbers = {
                name: _ask(asked[name], folder / f"asked-{name}.parquet", plan.view(name), view)
                for name, view in told["views"].items()
                if name in asked
            }
            _add_vectors(vectors[layout], served.vectors[layout], told, numbers)
            served.impressions += 1
            served.rows += len(told["items"]) + len(told["others"])
            instants = [instant for view in told["views"].values() for instant in view["at"]]
            served.first_ms, served.last_ms = min(served.first_ms, *instants), max(served.last_ms, *instants)
        for layout, path in served.vectors.items():
            vectors[layout].write(path)
        for name, rows in asked.items():
            rows.write(folder / f"asked-{name}.parquet")
            served.asked[name] = folder / f"asked-{name}.parquet"
    return served


def impressions(settings: Settings, since_ms: int = 0) -> Iterator[dict[str, Any]]:
    """Archived impressions, committed ones alone, each once: those of the dates of arrival from ``since_ms`` on.

    Raises
    ------
    DataError
        None have been archived.
    """
    folder = settings.impressions_dir
    manifest, files = read_manifest(folder), live_files(folder, since=date_at(since_ms))
    if manifest is None or not files:
        raise DataError(
            f"{folder}: no archived impressions there. Let the server answer while the archive runs (headwater up), or "
            f"archive what topic {topics.IMPRESSIONS} holds with headwater archive --until-caught-up."
        )
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(1_000, columns=["value", "partition", "offset"]):
            for value, partition, offset in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if offset < manifest.next_offsets.get(partition, 0):
                    yield json.loads(value)


class _Rows:
    """Columns of a file that is written by and by."""

    def __init__(self, schema: pa.Schema, open_files: ExitStack) -> None:
        self._schema, self._open_files = schema, open_files
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._writer: pq.ParquetWriter | None = None
        self.count = 0

    def add(self, path: Path, columns: Mapping[str, list[Any]]) -> range:
        """Add rows; the numbers that they get. What a schema's column lacks is null."""
        n = len(next(iter(columns.values())))
        numbers = range(self.count, self.count + n)
        for name, held in self._columns.items():
            held.extend(columns[name] if name in columns else [None] * n)
        self.count += n
        if len(next(iter(self._columns.values()))) >= HELD:
            self.write(path)
        return numbers

    def write(self, path: Path) -> None:
        """Write what is held."""
        if self._writer is None:
            self._writer = self._open_files.enter_context(pq.ParquetWriter(path, self._schema))
        self._writer.write_table(pa.table(self._columns, schema=self._schema))
        for held in self._columns.values():
            held.clear()


def _asked_schema(view: View | BatchView) -> pa.Schema:
    keys = [pa.field(f"_key_{at}", pa.string()) for at in range(len(view.join_keys))]
    tables = view.tables if isinstance(view, View) else ()
    marks = [pa.field(f"{table.id}_{mark}", pa.int64()) for table in tables for mark in ("count", "hash")]
    return pa.schema([pa.field(ROW, pa.int64()), pa.field(AT, pa.int64()), *keys, *marks])


def _served_schema(views: Mapping[str, Any]) -> pa.Schema:
    own = [("request_id", pa.string()), ("time", pa.int64()), ("item_id", pa.string())]
    asked = [(ask_column(name), pa.int64()) for name in views]
    return pa.schema([*own, ("logged", pa.list_(pa.float32())), *asked])


def _ask(rows: _Rows, path: Path, view: Any, told: Mapping[str, Any]) -> list[int]:
    """Add the questions of one view in one reply; the number asked for each logged row."""
    columns: dict[str, list[Any]] = {
        f"_key_{at}": [None if key[at] is None else str(key[at]) for key in told["keys"]]
        for at in range(len(view.join_keys))
    }
    for table, marks in told["marks"].items():
        columns[f"{table}_count"] = marks["count"]
        columns[f"{table}_hash"] = [_signed(int(digest, 16)) for digest in marks["hash"]]
    first = rows.count
    numbers = rows.add(path, {ROW: list(range(first, first + len(told["keys"]))), AT: told["at"], **columns})
    return [numbers[place] for place in told["rows"]]


def _add_vectors(rows: _Rows, path: Path, told: Mapping[str, Any], numbers: Mapping[str, list[int]]) -> None:
    logged = [*told["items"], *told["others"]]
    rows.add(path, {
        "request_id": [told["request_id"]] * len(logged), "time": [told["time"]] * len(logged),
        "item_id": [row["item_id"] for row in logged], "logged": [row["features"] for row in logged],
        **{ask_column(name): held for name, held in numbers.items()},
    })  # fmt: skip


def _signed(digest: int) -> int:
    return digest - 2**64 if digest >= 2**63 else digest
