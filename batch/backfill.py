"""Seed the online store with history: base tiles of windowed views, newest rows of ready-made ones.

What was imported (partition -1) and what the topic held below the cut from which on the stream folds a table
(:mod:`headwater.online.cuts`) goes to the table's base slot. Its tiles are absolute: running the backfill again, or
over a half-finished one, ends in the same bytes. A run that was ended goes on after the buckets that it had written
(:mod:`batch.progress`).

An imported event that came over the topic too, at or behind the cut, is left out, since the stream folds it. Where an
earlier run wrote it, before it came, its tile is written again without it, if need be empty.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.arrow_shuffle import answered, buckets_for, collected, packed_rows
from batch.events import Archive, archive_of, columns_of, group_codes, kernel_events, keys_of
from batch.progress import Marks
from batch.session import read_parquet
from batch.tiles import Tiles, emptied, fold_tiles
from headwater.errors import DefinitionError, UnavailableError
from headwater.log import get_logger
from headwater.online.codec import BASE, encode_row, is_fixed
from headwater.online.connect import connect
from headwater.online.cuts import Cut, mark_backfilled, read_cuts
from headwater.online.writer import Key, OnlineWriter
from headwater.plan import BatchView, FeaturePlan, OnDemandView, Table, View
from headwater.settings import Settings, addresses
from streaming.archive import archived_offsets

COUNTED = pa.schema([("tiles", pa.int64())])
STREAMED = "_streamed"
"""Column of events that are imported and on the topic too."""
Batches = Iterator[pa.RecordBatch]
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What was folded and, when materialized, written; ``holes`` are dates of a topic's archive without an event."""

    views: int
    tiles: int
    rows: int
    seconds: float
    holes: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class History:
    """Tables of a view that have one cut, and the archive below it."""

    archive: Archive
    tables: tuple[Table, ...]


def backfill(
    spark: Any,
    settings: Settings,
    plan: FeaturePlan,
    now_ms: int,
    views: Sequence[str] | None = None,
    materialize: bool = True,
    report: Callable[[str], None] | None = None,
) -> Backfilled:
    """Fold the history of the views named, all by default: what was imported, and what lies below their tables' cuts.

    Parameters
    ----------
    now_ms
        Ready-made views are written as of this instant.
    materialize
        Write to the online store; else only fold and count, of what was imported alone.
    report
        Called with each view's name when it begins.

    Raises
    ------
    UnavailableError
        The online store does not answer, or the archive has not reached a cut yet.
    """
    begun = time.monotonic()
    chosen: list[View | BatchView | OnDemandView] = [plan.view(name) for name in views or []]
    chosen = chosen or [*plan.views, *plan.batch_views]
    url = addresses(settings).redis if materialize else None
    histories = _histories(spark, settings, plan, [view for view in chosen if isinstance(view, View)], url)
    some = any(history.archive.is_there for parts in histories.values() for history in parts)
    holes = _holes(history.archive for parts in histories.values() for history in parts)
    marks: list[Marks] = []
    tiles = rows = 0
    for view in chosen:
        if report:
            report(view.name)
        if isinstance(view, View):
            # a topic without history has no tiles, where another has some
            held = [history for history in histories[view.name] if history.archive.is_there or not some]
            written = sum(_backfill_tables(history, view, url, plan.project, marks) for history in held)
            tiles += written
        elif isinstance(view, BatchView):
            written = materialize_batch(spark, view, now_ms, url, plan.project)
            rows += written
        else:
            continue
        log.info("backfilled", view=view.name, records=written, materialized=materialize)
    for mark in marks:  # only now: a run that is ended before this goes on with the next view
        mark.clear()
    stored = [view for view in chosen if not isinstance(view, OnDemandView)]
    return Backfilled(len(stored), tiles, rows, round(time.monotonic() - begun, 3), holes)


def _holes(archives: Iterable[Archive]) -> dict[str, list[str]]:
    """Warn of dates of which an archive has nothing: no event happened, or its files are lost."""
    holes = {archive.source.topic: archive.holes for archive in archives}
    for topic, dates in holes.items():
        if dates:
            log.warning("archive_has_holes", topic=topic, dates=len(dates), first=dates[0], last=dates[-1])
    return {topic: dates for topic, dates in holes.items() if dates}


def _histories(
    spark: Any, settings: Settings, plan: FeaturePlan, views: Sequence[View], url: str | None
) -> dict[str, list[History]]:
    """By view, its tables and what to fold into their base slots; tables of one cut share an archive."""
    cuts = _cuts(url, plan.project)
    archives: dict[tuple[str, tuple[tuple[int, int], ...]], Archive] = {}
    histories: dict[str, list[History]] = {}
    for view in views:
        tables: dict[tuple[tuple[int, int], ...], list[Table]] = {}
        for table in view.tables:
            tables.setdefault(tuple(sorted(_offsets(view, cuts.get(table.id)).items())), []).append(table)
        for below, together in tables.items():
            _check_reached(settings, view, plan.source(view.source).topic, dict(below))
            if (view.source, below) not in archives:
                archives[view.source, below] = archive_of(spark, settings, plan, view.source, below=dict(below))
            histories.setdefault(view.name, []).append(History(archives[view.source, below], tuple(together)))
    return histories


def _cuts(url: str | None, project: str) -> dict[str, Cut]:
    """Read the cuts, and so refuse a store that does not answer before an hour of folding rather than after it."""
    if url is None:
        return {}
    with connect(url) as client:
        return read_cuts(client, project)


def _offsets(view: View, cut: Cut | None) -> Mapping[int, int]:
    if cut is not None and cut.is_dropped:
        raise UnavailableError(
            f"{view.name}: it was dropped, and the stream has not been started since it is back, so what is the "
            "backfill's is not settled. Run `headwater up --only stream`, then this again."
        )
    return {} if cut is None else cut.offsets


def _check_reached(settings: Settings, view: View, topic: str, below: Mapping[int, int]) -> None:
    """Refuse to fold what is not archived yet: the stream does not fold it either."""
    archived = archived_offsets(settings, topic) if below else {}
    for number, end in below.items():
        if archived.get(number, 0) < end:
            raise UnavailableError(
                f"{view.name}: the stream folds it from offset {end} of partition {number} of topic {topic} on, and "
                f"the archive has come to {archived.get(number, 0)}. Run `headwater archive`, then this again."
            )


def _backfill_tables(history: History, view: View, url: str | None, project: str, marks: list[Marks]) -> int:
    """Tiles folded; the buckets of the view's keys are spread over the workers, and what is written is marked."""
    keys, buckets = keys_of(view), buckets_for(history.archive.count)
    mark = Marks(url, project, history.tables, history.archive.fingerprint, buckets)
    marks.append(mark)
    done = mark.done()
    projected = _flagged(history.archive, view, False)
    if history.archive.straddles:
        projected = projected.unionByName(_flagged(replace(history.archive, streamed=True), view, True))
    packed, schema = packed_rows(projected, keys, buckets, without=frozenset(done))
    folded = answered(packed, [schema], _bucket_writer(view, history.tables, url, project, mark))
    tiles = sum(done.values()) + int(pc.sum(collected(folded, COUNTED)["tiles"]).as_py() or 0)
    if url is not None and history.archive.below:
        with connect(url) as client:
            mark_backfilled(client, project, [table.id for table in history.tables], history.archive.below)
    return tiles


def _flagged(archive: Archive, view: View, streamed: bool) -> Any:
    return archive.project(view, columns_of(view)).selectExpr("*", f"{str(streamed).lower()} AS {STREAMED}")


def _bucket_writer(
    view: View, tables: Sequence[Table], url: str | None, project: str, mark: Marks
) -> Callable[[int, list[pa.Table]], pa.Table]:
    def write(bucket: int, sides: list[pa.Table]) -> pa.Table:
        (rows,) = sides
        (group,) = group_codes([rows[name] for name in keys_of(view)])
        _, first = np.unique(group, return_index=True)
        names = [rows[name].take(pa.array(first)).to_pylist() for name in keys_of(view)]
        owners: list[Key] = list(zip(*names, strict=True))
        streamed = np.asarray(rows[STREAMED])
        ours, theirs = (
            kernel_events(rows.filter(pa.array(mask)), group[mask], columns_of(view)).sorted()
            for mask in (~streamed, streamed)
        )
        writer = None if url is None else OnlineWriter(connect(url), project)
        counts = []
        for table in tables:
            tiles = fold_tiles(table, ours)
            withdrawn = emptied(table, fold_tiles(table, theirs), tiles)
            counts.append(len(tiles))
            if writer is not None:
                for (columns, payloads), group_part in (*_entity_batches(tiles), *_entity_batches(withdrawn)):
                    keys = [owners[code] for code in group_part]
                    writer.write_tiles(table, view.join_keys, keys, columns, payloads, replace=BASE)
        mark.put(bucket, counts)
        return pa.table([[sum(counts)]], schema=COUNTED)

    return write


def _entity_batches(tiles: Tiles, most: int = 50_000) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
    """Columns and payloads of about ``most`` tiles, never parting an entity's."""
    begin = 0
    while begin < len(tiles):
        end = len(tiles)
        if begin + most < end:
            end = int(np.searchsorted(tiles.group, tiles.group[begin + most], "right"))
        columns = {name: values[begin:end] for name, values in tiles.columns.items()}
        payloads = None if tiles.payloads is None else tiles.payloads[begin:end]
        yield (columns, payloads), tiles.group[begin:end].tolist()
        begin = end


def materialize_batch(spark: Any, view: BatchView, until_ms: int, url: str | None, project: str) -> int:
    """Write the newest row of each entity with an event time of at most ``until_ms``; return how many there are.

    Ties are broken by created time, then by the greater values, column by column.
    """
    if not is_fixed(view):
        raise DefinitionError(
            f"{view.name}: not all of its columns are numbers. Materialize it with feast materialize."
        )
    keys = ", ".join(key_columns(view))
    ties = ", ".join(f"`{column.name}` desc" for column in view.columns)
    place = f"row_number() over (partition by {keys} order by _event_time desc, _created desc, {ties})"
    newest = batch_rows(spark, view).where(f"_event_time <= {until_ms}").selectExpr("*", f"{place} AS _place")
    written = newest.where("_place = 1").drop("_place").mapInArrow(_row_writer(view, url, project), "written long")
    return int(written.groupBy().sum("written").first()[0] or 0)


def batch_rows(spark: Any, view: BatchView) -> Any:
    """DataFrame of a ready-made view's source: keys as strings, its columns, ``_event_time, _created`` (ms)."""
    source = read_parquet(spark, view.path)
    keys = [f"CAST(`{key}` AS STRING) AS {name}" for key, name in zip(view.join_keys, key_columns(view), strict=True)]
    values = [f"`{column.name}`" for column in view.columns]
    created = view.created_field or view.timestamp_field
    times = [f"unix_millis(`{view.timestamp_field}`) AS _event_time", f"unix_millis(`{created}`) AS _created"]
    rows = source.selectExpr(*keys, *values, *times)
    return rows.where(" AND ".join(f"{name} IS NOT NULL" for name in key_columns(view)))


def key_columns(view: BatchView) -> list[str]:
    """Names under which :func:`batch_rows` holds the join keys, in the view's order."""
    return [f"_key_{at}" for at in range(len(view.join_keys))]


def _row_writer(
    view: BatchView, url: str | None, project: str
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def write(batches: Batches) -> Batches:
        writer = None if url is None else OnlineWriter(connect(url), project)
        for batch in batches:
            if writer is not None:
                keys = list(zip(*(batch[name].to_pylist() for name in key_columns(view)), strict=True))
                values = [_plain(batch[column.name]) for column in view.columns]
                times = zip(batch["_event_time"].to_pylist(), batch["_created"].to_pylist(), strict=True)
                rows = [
                    encode_row(view, event, created, one)
                    for (event, created), one in zip(times, zip(*values, strict=True), strict=True)
                ]
                writer.write_rows(view, keys, rows)
            yield pa.RecordBatch.from_pydict({"written": pa.array([batch.num_rows], pa.int64())})

    return write


def _plain(column: pa.Array) -> list[Any]:
    """Values as the row codec takes them: instants in epoch seconds, as Feast has them."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values
