"""What is there, held against what is expected of it: archived events, a training set, vectors as they were served.

Events are judged as they arrived, copies among them, and nothing is left out because of what is found: which events
count is decided once, by the rules that the stream and the archive share.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batch.quarantine import expected_of
from headwater.archive_files import live_files, rows_by_date
from headwater.errors import DataError
from headwater.events import ARCHIVE_SCHEMA
from headwater.expectations import EventExpectations, Expectations, Finding, Tally, columns_of
from headwater.plan import FeaturePlan, Source
from headwater.records import archive_schema, is_envelope
from headwater.settings import Settings

SERVED = 10_000
"""Newest impressions whose vectors are judged."""


def check_events(settings: Settings, plan: FeaturePlan, expectations: Expectations, now_ms: int) -> Iterator[Finding]:
    """Judge the archive of each source of which something is expected, as of the platform's time."""
    for name, expected in expectations.events.items():
        source = plan.source(name)
        folder = settings.archive_dir / source.topic
        files = live_files(folder)
        if not files:
            raise DataError(
                f"{folder}: no archived events of {name} there, of which something is expected. Bring data in with "
                "headwater ingest, or leave them out of expectations.toml."
            )
        yield from _of_columns(source, expected, files)
        yield from _of_days(source, expected, rows_by_date(folder))
        yield from _of_newest(source, expected, files, now_ms)


def check_training_set(folder: Path, expectations: Expectations) -> Iterator[Finding]:
    """Judge the rows of a training set; those in its quarantine are not its rows."""
    rows = ds.dataset(folder, format="parquet")
    columns = expected_of(expectations, set(rows.schema.names))
    tally = Tally("training set", columns)
    if columns:
        for batch in rows.to_batches(columns=list(columns)):
            tally.add(pa.Table.from_batches([batch]))
    yield from tally.findings(expectations.training_set.quarantined)


def check_served(settings: Settings, expectations: Expectations, most: int = SERVED) -> Iterator[Finding]:
    """Judge the vectors that were logged with the newest impressions, of the items shown."""
    by_names: dict[tuple[str, ...], list[list[float | None]]] = {}
    for text in _newest_impressions(settings.impressions_dir, most):
        record = json.loads(text)
        vectors = [item["features"] for item in record["items"] if item["features"] is not None]
        by_names.setdefault(tuple(record["feature_names"]), []).extend(vectors)
    known = {name for names in by_names for name in names}
    for name, column in expected_of(expectations, known).items():
        tally = Tally("served", {name: column})
        for names, vectors in by_names.items():
            if name in names:
                at = names.index(name)
                tally.add(pa.table({name: pa.array([vector[at] for vector in vectors], pa.float32())}))
        yield from tally.findings(expectations.training_set.quarantined)


def _newest_impressions(folder: Path, most: int) -> list[str]:
    found: list[str] = []
    for path in reversed(live_files(folder)):
        found += pq.ParquetFile(path).read(columns=["value"])["value"].to_pylist()
        if len(found) >= most:
            break
    return found


def _of_columns(source: Source, expected: EventExpectations, files: Iterable[Path]) -> Iterator[Finding]:
    if not expected.columns:
        return
    schema = ARCHIVE_SCHEMA if is_envelope(source) else archive_schema(source)
    known = columns_of(source)
    read = dict.fromkeys(name if name in known else name.partition(".")[0] for name in expected.columns)
    tally = Tally(source.name, expected.columns)
    archive = ds.dataset(list(files), schema=schema, format="parquet")
    for batch in archive.to_batches(columns=[*read, "partition", "offset"]):
        table = pa.Table.from_batches([batch])
        tally.add(table, _Places(table))
    yield from tally.findings()


def _of_days(source: Source, expected: EventExpectations, rows: dict[str, int]) -> Iterator[Finding]:
    """Whole days alone: those between the first and the last, which may have begun before and not ended yet."""
    bounds = expected.rows_per_day
    first, last = date.fromisoformat(min(rows)), date.fromisoformat(max(rows))
    days = [str(first + timedelta(days=at)) for at in range(1, (last - first).days)]
    for text, limit, fails in (("min", bounds.min, float.__gt__), ("max", bounds.max, float.__lt__)):
        if limit is not None:
            failing = [day for day in days if fails(limit, float(rows.get(day, 0)))]
            examples = tuple(f"{rows.get(day, 0)} on {day}" for day in failing[:5])
            expects = f"rows per day {text} {limit:g}"
            yield Finding(source.name, "days", expects, len(days), len(failing), not failing, examples)


def _of_newest(source: Source, expected: EventExpectations, files: list[Path], now_ms: int) -> Iterator[Finding]:
    if expected.newest_within is None:
        return
    newest_date = files[-1].parent
    table = ds.dataset([path for path in files if path.parent == newest_date]).to_table(columns=[source.event_time])
    age = timedelta(milliseconds=now_ms - (pc.max(table[source.event_time]).as_py() or 0))
    holds = age <= expected.newest_within
    text = f"newest within {expected.newest_within}"
    yield Finding(source.name, source.event_time, text, 1, int(not holds), holds, () if holds else (f"{age} old",))


class _Places(dict[int, str]):
    """Where rows lie in Kafka, made only for those that are asked for."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        self._table = table

    def __bool__(self) -> bool:
        return True

    def __missing__(self, row: int) -> str:
        return f"{self._table['partition'][row].as_py()}-{self._table['offset'][row].as_py()}"
