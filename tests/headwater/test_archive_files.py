"""Who reads the archive asks which files count; the rule itself is held to its oracle in tests/streaming."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headwater.archive_files import Span, live_files, rows_by_date

ROOT = Path(__file__).parents[2]
WRITERS = {"streaming/parquet_log.py", "streaming/compaction.py", "streaming/erasure.py"}
"""Who removes or rewrites files looks at those that do not count too; an import has names of its own."""


def test_nobody_but_its_writers_lists_the_archive_by_itself() -> None:
    """A folder read as a whole has rows twice for hours after each compaction."""
    lists = re.compile(r"""glob\(f?["']date=|partitioning=["']hive|(events|impressions)_dir\)?\.(r?glob|iterdir)""")
    found = {
        str(path.relative_to(ROOT))
        for room in ("headwater", "streaming", "batch", "models", "serving", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
        if lists.search(path.read_text())
    }
    assert found - WRITERS == {"headwater/archive_files.py", "headwater/datasets/complete_journey.py"}


def test_files_are_found_by_their_dates_and_rows_counted_once(tmp_path: Path) -> None:
    for date, names in {
        "2017-01-01": ["import-0.parquet", Span(0, 0, 4).name],
        "2017-01-02": [Span(0, 0, 4).name, Span(0, 5, 9).name, Span(0, 0, 9).name, Span(1, 0, 9).name],
    }.items():
        folder = tmp_path / f"date={date}"
        folder.mkdir()
        for name in names:
            pq.write_table(pa.table({"offset": range(3)}), folder / name)
        (folder / ".draft.parquet.tmp").touch()
    assert rows_by_date(tmp_path) == {"2017-01-01": 6, "2017-01-02": 6}
    assert live_files(tmp_path, since="2017-01-03") == []
    assert [path.name for path in live_files(tmp_path, since="2017-01-02")] == [Span(0, 0, 9).name, Span(1, 0, 9).name]
    assert len(live_files(tmp_path, until="2017-01-01")) == 2
