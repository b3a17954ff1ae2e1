"""Small files become few: at every instant a reader finds each row once, and a killed run is finished by the next."""

import contextlib
import os
import threading
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.archive_files import Span, live_files, rows_by_date, span_of, superseded
from headwater.errors import ResourceError
from streaming import compaction, parquet_log
from streaming.compaction import KEEP_S, Compacted, compact
from streaming.parquet_log import ParquetLog, files_held

DATES = ["2017-10-30", "2017-10-31"]
RECORDS = 20
LATER = 4e9
"""Wall time at which all that has not counted for long is removed."""


class Killed(BaseException):
    """Nothing may catch it: the process is gone."""


def to_table(partition: int, offsets: list[int]) -> pa.Table:
    return pa.table({"partition": [partition] * len(offsets), "offset": offsets})


def filled(folder: Path, records: int = RECORDS) -> ParquetLog[int]:
    """A file for every record, of two partitions and two dates in turn."""
    log: ParquetLog[int] = ParquetLog(folder, "events", "c1", to_table)
    for offset in range(records):
        for partition in (0, 1):
            log.add(partition, offset, DATES[offset // 3 % 2], offset)
        log.flush()
    return log


def rows_in(files: list[Path]) -> Counter:
    found: Counter = Counter()
    for path in files:
        table = pq.ParquetFile(path).read()
        found.update(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))
    return found


def each(records: int = RECORDS) -> Counter:
    return Counter((partition, offset) for partition in (0, 1) for offset in range(records))


def listed(folder: Path) -> list[Path]:
    return sorted(folder.glob("date=*/*.parquet"))


def test_files_of_a_date_and_partition_become_one_and_the_old_ones_go_when_nobody_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    filled(folder)
    before = live_files(folder)
    assert len(before) == 2 * RECORDS
    assert compact(tmp_path, folder) == Compacted(merged=2 * RECORDS, made=4)
    assert len(live_files(folder)) == 4
    assert rows_in(live_files(folder)) == each()
    assert rows_in(before) == each(), "who has listed the old files can read them to the end"
    assert sum(rows_by_date(folder).values()) == 2 * RECORDS

    now = max(path.stat().st_mtime for path in listed(folder))
    assert compact(tmp_path, folder, now_s=lambda: now + KEEP_S - 60).removed == 0
    assert compact(tmp_path, folder, now_s=lambda: now + KEEP_S + 60) == Compacted(removed=2 * RECORDS)
    assert listed(folder) == live_files(folder)
    assert compact(tmp_path, folder) == Compacted()


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(2, 5))
def test_kills_at_any_step_leave_each_row_in_one_file_that_counts(
    tmp_path_factory, monkeypatch, kills: list[int], at_least: int
) -> None:
    """Every step on the file system is one at which the process may end, and at which a reader may look."""
    archive = tmp_path_factory.mktemp("archive")
    folder = archive / "events"
    filled(folder)
    steps = {"replace": Path.replace, "unlink": Path.unlink}
    synchronise = parquet_log._synchronise
    for kill in kills:
        left = [kill]

        def step(left=left) -> None:
            assert rows_in(live_files(folder)) == each()
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        def stepped(name: str, step=step):
            def act(*given, **named):
                step()
                done = steps[name](*given, **named)
                assert rows_in(live_files(folder)) == each()
                return done

            return act

        def synchronised(path, step=step):
            step()
            synchronise(path)

        with monkeypatch.context() as patch:
            for name in steps:
                patch.setattr(Path, name, stepped(name))
            patch.setattr(parquet_log, "_synchronise", synchronised)
            with contextlib.suppress(Killed):
                compact(archive, folder, at_least=at_least, now_s=lambda: LATER)
        assert rows_in(live_files(folder)) == each()
    compact(archive, folder, now_s=lambda: LATER)
    compact(archive, folder, now_s=lambda: LATER)
    assert len(listed(folder)) == 4
    assert rows_in(listed(folder)) == each()
    assert not list(folder.glob("**/.*.tmp"))


def test_a_running_writer_and_running_readers_see_each_committed_row_once(tmp_path: Path) -> None:
    """The writer adds, two compactions run against each other, the reader lists and reads, all at the same time."""
    folder, records = tmp_path / "events", 100
    log = filled(folder, 2)
    wrong: list[str] = []
    ended = threading.Event()

    def tidy() -> None:
        while not ended.is_set():
            compact(tmp_path, folder)

    def read() -> None:
        while not ended.is_set():
            committed = dict(log.committed.next_offsets)
            found = rows_in(live_files(folder))
            if doubles := {place for place, count in found.items() if count > 1}:
                wrong.append(f"double {doubles}")
            if lost := [p for p in ((0, n) for n in range(committed[0])) if p not in found]:
                wrong.append(f"lost {lost}")

    threads = [threading.Thread(target=work) for work in (tidy, tidy, read)]
    for thread in threads:
        thread.start()
    for offset in range(2, records):
        for partition in (0, 1):
            log.add(partition, offset, DATES[offset // 3 % 2], offset)
        with files_held(tmp_path):
            log.flush()
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong
    compact(tmp_path, folder)
    assert rows_in(live_files(folder)) == each(records)
    assert len(live_files(folder)) == 4


def test_what_a_killed_flush_left_behind_is_not_compacted(tmp_path: Path) -> None:
    """It is read again under other names, so that its rows would be there twice."""
    folder = tmp_path / "events"
    filled(folder, 3)
    left = folder / f"date={DATES[0]}" / Span(0, 3, 3).name
    pq.write_table(to_table(0, [3]), left)
    compact(tmp_path, folder)
    assert left in live_files(folder)
    ParquetLog(folder, "events", "c1", to_table)
    assert not left.exists()
    assert rows_in(live_files(folder)) == each(3)


def test_files_are_brought_together_up_to_a_size_and_large_ones_are_left(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    log = filled(folder, 0)
    log._to_table = lambda partition, offsets: to_table(partition, offsets).append_column(  # type: ignore[method-assign]
        "load", pa.array([os.urandom(20_000) for _ in offsets])
    )
    for offset in range(RECORDS):
        log.add(0, offset, DATES[0], offset)
        log.flush()
    compact(tmp_path, folder, target_bytes=110_000)
    sizes = [path.stat().st_size for path in live_files(folder)]
    assert len(sizes) == RECORDS // 5
    assert max(sizes) <= 110_000
    assert compact(tmp_path, folder, target_bytes=110_000) == Compacted()
    assert compact(tmp_path, folder, target_bytes=400_000) == Compacted(), "of a quarter and more each"
    assert compact(tmp_path, folder, target_bytes=500_000).made == 1


def test_an_import_beside_them_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    filled(folder, 3)
    other = folder / f"date={DATES[0]}" / "import-0.parquet"
    pq.write_table(to_table(-1, [0]), other)
    compact(tmp_path, folder)
    assert other in live_files(folder)


def test_a_column_that_old_files_lack_is_null_in_what_is_made_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    log = filled(folder, 2)
    log._to_table = lambda partition, offsets: to_table(partition, offsets).append_column(  # type: ignore[method-assign]
        "paid", pa.array([1.5] * len(offsets))
    )
    for partition in (0, 1):
        log.add(partition, 2, DATES[0], 2)
    log.flush()
    compact(tmp_path, folder)
    (path,) = [path for path in live_files(folder) if span_of(path) == Span(0, 0, 2)]
    assert pq.ParquetFile(path).read()["paid"].to_pylist() == [None, None, 1.5]


def test_a_full_disk_is_told_and_all_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "events"
    filled(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compaction.pq.ParquetWriter, "write_table", full)
    with pytest.raises(ResourceError, match="No space left"):
        compact(tmp_path, folder)
    assert rows_in(live_files(folder)) == each()


@given(st.data())
def test_what_is_superseded_is_what_another_holds(data) -> None:
    """Against every pair, for spans that lie apart or within each other, as compaction makes them."""
    spans = {Span(0, at, at) for at in data.draw(st.sets(st.integers(0, 12), max_size=8))}
    for _ in range(data.draw(st.integers(0, 3))):
        ordered = sorted(outermost(spans))
        if len(ordered) > 1:
            begin = data.draw(st.integers(0, len(ordered) - 2))
            end = data.draw(st.integers(begin + 1, len(ordered) - 1))
            spans.add(Span(0, ordered[begin].first, ordered[end].last))
    paths = {Path(os.sep) / "date=2017-10-30" / span.name: span for span in spans}
    gone = superseded(paths)
    assert {paths[path] for path in gone} == spans - outermost(spans)
    for path, holder in gone.items():
        assert holds(paths[holder], paths[path])
        between = [one for one in spans if holds(one, paths[path]) and holds(paths[holder], one)]
        assert not between, "the innermost took its place first"


def holds(outer: Span, inner: Span) -> bool:
    return outer != inner and outer.first <= inner.first and inner.last <= outer.last


def outermost(spans: set[Span]) -> set[Span]:
    return {one for one in spans if not any(holds(other, one) for other in spans)}
