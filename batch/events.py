"""From the archive to a view's events: pruned by date, each event once, projected by the view's own SQL.

Shape of what a view's projection yields here, one row an event: its join keys as strings, its columns as the kernel
reads them (fractions as int64 millionths), ``_event_id``, ``_event_time`` and ``_ingest_time`` (epoch ms).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from numpy.typing import NDArray

from headwater.archive_files import check_columns, live_files, rows_by_date
from headwater.errors import DataError
from headwater.events import MAX_ABS_VALUE
from headwater.folds import Ints
from headwater.plan import FIXED_SCALE, FeaturePlan, Source, View
from headwater.records import archive_schema, is_envelope
from headwater.registry.projection import guard_casts
from headwater.settings import Settings
from headwater.timeline import Column, Events

EVENT_ID, EVENT_TIME, INGEST_TIME = "_event_id", "_event_time", "_ingest_time"
DIALECT = "databricks"
"""Spark SQL that keeps TRY_CAST: a text that is no number is null, as the stream reads it."""
BUCKETS = 8
"""Of rows that are grouped by their keys."""
_PLACE = "ingest_time bigint, partition int, offset bigint, date date"


@dataclass(frozen=True, eq=False)
class Archive:
    """Archived events of one source with ``since_ms <= event_time < until_ms``, each once.

    Of copies sharing an id the first by (ingest time, partition, offset) counts. With ``below``, offsets by partition,
    only what the stream does not fold is read: what lies below them and the historic import, but for imported events
    that are on the topic at or behind them too. Those alone are read with ``streamed``.
    """

    spark: Any
    folder: Path
    source: Source
    since_ms: int | None = None
    until_ms: int | None = None
    below: Mapping[int, int] | None = None
    streamed: bool = False

    def project(self, view: View, columns: Collection[str] = (), ordered: bool = True) -> Any:
        """DataFrame of a view's events, with its join keys and the ``columns`` named.

        Only where events must be ``ordered`` within a millisecond are their ids there, else they are empty.
        """
        projected = self.spark.sql(projection_sql(view, self.source, self._table, columns))
        return projected if ordered else projected.selectExpr("* except (_event_id)", f"'' AS {EVENT_ID}")

    @cached_property
    def _table(self) -> str:
        name = f"headwater_archive_{id(self)}"
        self.events.createOrReplaceTempView(name)
        return name

    @property
    def is_there(self) -> bool:
        """Whether anything has been archived."""
        return bool(live_files(self.folder))

    @property
    def fingerprint(self) -> str:
        """What a fold of it is a function of: its files, their sizes, and what is read of them."""
        named = "".join(f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path in live_files(self.folder))
        return sha256((named + self._wanted()).encode()).hexdigest()

    @property
    def count(self) -> int:
        """Rows in its files, by their footers."""
        return sum(self._rows_by_date.values())

    @property
    def holes(self) -> list[str]:
        """Dates between the first and the last archived one of which nothing is there."""
        held = [date for date, rows in self._rows_by_date.items() if rows]
        if not held:
            return []
        between = np.arange(np.datetime64(min(held)), np.datetime64(max(held)))
        return sorted({str(date) for date in between}.difference(held))

    @cached_property
    def _rows_by_date(self) -> dict[str, int]:
        return rows_by_date(self.folder)

    @cached_property
    def events(self) -> Any:
        """DataFrame of the source's columns and ``ingest_time, partition, offset``; each event once."""
        counted = self._without_copies(self.rows)
        if not self.straddles:
            return counted
        return counted.join(self._on_both_sides, self.source.event_id, "left_semi" if self.streamed else "left_anti")

    @property
    def rows(self) -> Any:
        """What is read, with copies, whether the stream folds it too or not."""
        return self._read.where(self._wanted())

    @cached_property
    def straddles(self) -> bool:
        """Whether anything was imported that the stream folds too."""
        return self.below is not None and bool(self._on_both_sides.head(1))

    @cached_property
    def _on_both_sides(self) -> Any:
        """Ids of imported events that are on the topic too, and first at or behind the offsets ``below``."""
        sides = ("partition < 0", "partition >= 0", self._is_below)
        imported, sent, kept = (self._read.where(side).select(self.source.event_id) for side in sides)
        return imported.intersect(sent).subtract(kept).persist()

    @property
    def _is_below(self) -> str:
        parts = [f"partition = {number} AND offset < {end}" for number, end in (self.below or {}).items()]
        return " OR ".join(parts) or "false"

    @cached_property
    def _read(self) -> Any:
        files = self._files
        if not files:
            raise DataError(
                f"{self.folder}: no archived events of {self.source.name} there. Bring data in with headwater ingest, "
                "or prepare the example's with headwater data complete-journey."
            )
        if not is_envelope(self.source):
            check_columns(self.folder, archive_schema(self.source))
        columns = ", ".join(f"`{name}` {kind}" for name, kind in self.source.columns)
        reader = self.spark.read.schema(f"{columns}, {_PLACE}").option("basePath", str(self.folder))
        return reader.parquet(*map(str, files))

    @property
    def _files(self) -> list[Path]:
        """Listed once, since compaction may go on meanwhile; where no date is in reach, one file tells the columns."""
        since, until = (None if at is None else _date(at) for at in (self.since_ms, self.until_ms))
        return live_files(self.folder, since, until) or live_files(self.folder)[:1]

    def _wanted(self) -> str:
        time, conditions = f"`{self.source.event_time}`", ["true"]
        if self.since_ms is not None:
            conditions.append(f"date >= DATE'{_date(self.since_ms)}' AND {time} >= {self.since_ms}")
        if self.until_ms is not None:
            conditions.append(f"date <= DATE'{_date(self.until_ms)}' AND {time} < {self.until_ms}")
        if self.below is not None:
            conditions.append(f"(partition < 0 OR {self._is_below})")
        return " AND ".join(conditions)

    def _without_copies(self, read: Any) -> Any:
        """Leave out events that came before under the same id; usually there are none, and nothing is joined."""
        name, digest = self.source.event_id, f"xxhash64(`{self.source.event_id}`) AS _digest"
        numbered = read.selectExpr(f"`{name}`", "ingest_time", "partition", "offset", digest)
        repeated = numbered.groupBy("_digest").count().where("count > 1").select("_digest")
        place = f"row_number() over (partition by `{name}` order by ingest_time, partition, offset)"
        placed = numbered.join(repeated, "_digest").selectExpr(f"`{name}`", "partition", "offset", f"{place} AS _place")
        later = placed.where("_place > 1").drop("_place").persist()
        return read.join(later, [name, "partition", "offset"], "left_anti") if later.head(1) else read


def archive_of(spark: Any, settings: Settings, plan: FeaturePlan, source: str, **bounds: Any) -> Archive:
    """Archive of a source: the platform's own folder of its topic."""
    found = plan.source(source)
    return Archive(spark, settings.archive_dir / found.topic, found, **bounds)


def since_of(view: View, first_ms: int) -> int | None:
    """Oldest event time that a view may read at ``first_ms``; None where that is unbounded."""
    if view.ttl_ms == 0 or any(aggregate.window_ms is None for aggregate in view.aggregates):
        return None
    return first_ms - max(view.ttl_ms, *((a.window_ms or 0) + (a.hop_ms or 0) for a in view.aggregates))


def columns_of(view: View, features: Collection[str] | None = None) -> list[str]:
    """Projected columns that the features (all by default) fold."""
    wanted = [a.column for a in view.aggregates if a.column and (features is None or a.feature in features)]
    return list(dict.fromkeys(wanted))


def projection_sql(view: View, source: Source, table: str, columns: Collection[str]) -> str:
    """Write the view's projection over ``table``, as the kernel reads it; events without a join key are left out."""
    tree = guard_casts(sqlglot.parse_one(view.projection, read=DIALECT), dict(source.columns))
    named = {item.alias_or_name: item.unalias().sql(DIALECT) for item in tree.expressions}
    wanted = [f"CAST({named[key]} AS STRING) AS `{_key(at)}`" for at, key in enumerate(view.join_keys)]
    wanted += [f"{_as_read(named[name], view.columns[name])} AS `{name}`" for name in columns]
    wanted += [f"CAST(`{source.event_id}` AS STRING) AS {EVENT_ID}", f"`{source.event_time}` AS {EVENT_TIME}"]
    where = tree.args.get("where")
    given = " AND ".join(f"({named[key]}) IS NOT NULL" for key in view.join_keys)
    condition = given if where is None else f"({where.this.sql(DIALECT)}) AND {given}"
    return f"SELECT {', '.join(wanted)}, ingest_time AS {INGEST_TIME} FROM {table} WHERE {condition}"


def keys_of(view: View) -> list[str]:
    """Names under which a projection holds the join keys, in the view's order."""
    return [_key(at) for at in range(len(view.join_keys))]


def bucketed(rows: Any, keys: Collection[str]) -> Any:
    """Group rows by a hash of their keys, alike for every table that has these keys."""
    return rows.selectExpr("*", f"pmod(xxhash64({', '.join(keys)}), {BUCKETS}) AS _bucket").groupBy("_bucket")


def kernel_events(rows: pa.Table, group: Ints, columns: Collection[str]) -> Events:
    """Lay projected rows out for the kernel."""
    whole = rows.combine_chunks()
    return Events(
        group, _ints(whole[EVENT_TIME]), _ints(whole[INGEST_TIME]), _array(whole[EVENT_ID]),
        {name: _column(_array(whole[name])) for name in columns},
    )  # fmt: skip


def group_codes(*sides: Sequence[pa.ChunkedArray]) -> list[Ints]:
    """Code each combination of keys from 0, alike on all sides, -1 where a key is null; int64 (rows,) a side."""
    codes = [np.zeros(len(side[0]), np.int64) for side in sides]
    for keys in zip(*sides, strict=True):
        known = pc.unique(pa.chunked_array([chunk for key in keys for chunk in key.chunks], keys[0].type))
        places = [pc.index_in(key, value_set=known.drop_null()).fill_null(-1).to_numpy() for key in keys]
        codes = [
            np.where((code < 0) | (place < 0), -1, code * (len(known) + 1) + place)
            for code, place in zip(codes, places, strict=True)
        ]
        _, dense = np.unique(np.concatenate([np.r_[-1, code] for code in codes]), return_inverse=True)
        ends = np.cumsum([len(code) + 1 for code in codes])
        codes = [dense[end - len(code) : end] - 1 for end, code in zip(ends, codes, strict=True)]
    return codes


def _key(at: int) -> str:
    return f"_key_{at}"


def _as_read(expression: str, kind: str) -> str:
    if kind == "string":
        return f"CAST({expression} AS STRING)"
    if kind == "int":
        return f"CAST({expression} AS BIGINT)"
    return fixed_point(expression)


def fixed_point(expression: str) -> str:
    """Millionths of a number as SQL, null where it is out of range."""
    wide = f"CAST({expression} AS DOUBLE)"
    scaled = f"CAST(ROUND({wide} * {FIXED_SCALE // 10**6}E6) AS BIGINT)"
    return f"CASE WHEN ABS({wide}) <= {MAX_ABS_VALUE!r}D THEN {scaled} END"


def _column(values: pa.Array) -> Column:
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    return Column(values if pa.types.is_string(values.type) else values.fill_null(0).to_numpy(), valid)


def _ints(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy()
    return values


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _date(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, UTC).strftime("%Y-%m-%d")
