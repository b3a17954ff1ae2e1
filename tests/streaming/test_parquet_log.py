"""Every offset in exactly one file, at whatever step the writer is killed."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headwater.errors import DataError, ResourceError
from streaming import parquet_log
from streaming.parquet_log import ParquetLog, read_manifest

DATES = ["2017-10-30", "2017-10-31", "2017-11-01"]
RECORDS = 24


class Killed(BaseException):
    """Nothing may catch it: the process is gone."""


def to_table(partition: int, offsets: list[int]) -> pa.Table:
    return pa.table({"partition": [partition] * len(offsets), "offset": offsets})


def open_log(folder: Path, cluster: str = "c1") -> ParquetLog[int]:
    return ParquetLog(folder, "events", cluster, to_table)


def feed(log: ParquetLog[int], flush_every: int) -> None:
    """Two partitions, in turn, from where the log goes on."""
    for turn in range(RECORDS):
        for partition in (0, 1):
            offset = log.next_offset(partition)
            if offset < RECORDS:
                log.add(partition, offset, DATES[(offset + partition) % len(DATES)], offset)
        if turn % flush_every == flush_every - 1:
            log.flush()
    log.flush()


def offsets_in(folder: Path) -> Counter:
    if not any(folder.glob("date=*/p*.parquet")):
        return Counter()
    table = ds.dataset(folder, format="parquet").to_table()
    return Counter(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))


EVERY_OFFSET = Counter((partition, offset) for partition in (0, 1) for offset in range(RECORDS))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(3, 16)), max_size=3))
@example([(1, 10), (2, 4)])
@example([(11, 10), (12, 16)])
def test_kills_at_any_step_lose_and_double_nothing(tmp_path_factory, monkeypatch, kills) -> None:
    """Each of ``kills`` ends a process that flushes every so many turns after so many steps on the file system."""
    folder = tmp_path_factory.mktemp("log")
    whole, synchronise = Path.replace, parquet_log._synchronise
    for steps, flush_every in kills:
        left = [steps]

        def step(left=left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        def replace(self, target, step=step):
            step()
            return whole(self, target)

        def synchronised(path, step=step):
            step()
            synchronise(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            patch.setattr(parquet_log, "_synchronise", synchronised)
            try:
                feed(open_log(folder), flush_every)
            except Killed:
                assert not offsets_in(folder) - EVERY_OFFSET, "an offset lies in two files"
    feed(open_log(folder), flush_every=7)
    assert offsets_in(folder) == EVERY_OFFSET
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.next_offsets == {0: RECORDS, 1: RECORDS}
    assert manifest.totals["rows"] == 2 * RECORDS
    assert not list(folder.glob("**/.*.tmp"))


def test_what_was_passed_by_is_not_read_again(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.add(0, 0, DATES[0], 0)
    log.count("dead_letters")
    log.pass_by(0, 2)
    log.flush()
    again = open_log(tmp_path)
    assert again.next_offset(0) == 2
    assert again.committed.totals == {"rows": 1, "dead_letters": 1}


def test_files_of_others_stay(tmp_path: Path) -> None:
    other = tmp_path / f"date={DATES[0]}" / "import-0.parquet"
    other.parent.mkdir()
    other.write_bytes(b"x")
    open_log(tmp_path)
    assert other.exists()


def test_offsets_of_another_cluster_are_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.add(0, 0, DATES[0], 0)
    log.flush()
    with pytest.raises(DataError, match="cluster c1, this one is c2"):
        open_log(tmp_path, "c2")


def test_a_full_disk_is_told_and_what_was_committed_stays(tmp_path: Path, monkeypatch) -> None:
    log = open_log(tmp_path)
    log.add(0, 0, DATES[0], 0)
    log.flush()
    log.add(0, 1, DATES[0], 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet_log.pq, "write_table", full)
        with pytest.raises(ResourceError, match="No space left"):
            log.flush()
    assert read_manifest(tmp_path).next_offsets == {0: 1}
    log.flush()
    assert offsets_in(tmp_path) == Counter([(0, 0), (0, 1)])
