"""The join benchmark's own checks: DuckDB's join against the loop, and what each of them counts as wrong."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import pit, pit_data, pit_defects, pit_subject


def test_duckdb_finds_what_the_loop_finds_and_a_changed_value_is_counted(tmp_path: Path) -> None:
    pit_data.draw(tmp_path / "data", labels=300, rows=2_000)
    joined = pit_subject.duckdb(tmp_path, tmp_path / "data")(tmp_path / "data" / "labels.parquet", None)
    pq.write_table(joined, tmp_path / "duckdb.parquet")
    pq.write_table(joined, tmp_path / "ours.parquet")
    assert joined.num_rows == 300
    assert 0 < joined["visits0"].null_count < 300
    assert pit._proof("", tmp_path).value == pit._agreement("", tmp_path).value == 0

    visits = joined["visits1"].combine_chunks()
    pq.write_table(
        joined.set_column(
            joined.column_names.index("visits1"), "visits1", pa.array(np.asarray(visits.fill_null(-1)) + 1)
        ),
        tmp_path / "ours.parquet",
    )
    assert pit._proof("", tmp_path).value == pit._agreement("", tmp_path).value == 300


def test_swapped_fanned_out_and_leaked_labels_are_counted() -> None:
    """A right answer is not."""
    hour = 3_600_000
    asked = [({"user_id": 1, "item_id": 11}, 10 * hour), ({"user_id": 11, "item_id": 1}, 10 * hour)]
    rows = [((1, 11), hour, hour, 5), ((11, 1), hour, hour, 6), ((1, 11), 2 * hour, 20 * hour, 7)]

    def wrong(labels: list[int], values: list[int | None]) -> int:
        table = pa.table({"label": labels, "pair_value": pa.array(values, pa.int64())})
        return pit_defects._wrong(table, "pair_value", asked, rows, pit_defects.PAIRS)

    assert wrong([0, 1], [5, 6]) == 0
    assert wrong([0, 1], [6, 5]) == 2
    assert wrong([0, 0, 1], [5, 5, 6]) == 1
    assert wrong([0, 1], [7, 6]) == 1
    assert wrong([1], [6]) == 1
    assert wrong([0, 1], [5, None]) == 1


def test_of_rows_at_one_instant_either_is_right() -> None:
    rows = [((1,), 5, 5, 1), ((1,), 5, 5, 2), ((1,), 4, 4, 3)]
    for value, expected in ((1, 0), (2, 0), (3, 1)):
        table = pa.table({"label": [0], "tied_value": [value]})
        asked = [({"user_id": 1, "item_id": 1}, 9)]
        assert pit_defects._wrong(table, "tied_value", asked, rows, pit_defects.TIES) == expected
