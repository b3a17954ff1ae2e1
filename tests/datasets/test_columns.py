"""A user's own rows, in three formats, as the same events."""

import csv
import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.datasets.columns import ColumnMap
from headwater.datasets.rows import RowFile
from headwater.errors import ConfigError, DataError
from headwater.events import MALFORMED, BadRecord, Event

MAP = ColumnMap.parse("event_time=at,user_id=customer,item_id=sku,value=price,context.shop=shop", "view")
SHOPS = [
    {"at": 1_509_289_004_000, "customer": 7, "sku": "a", "price": 1.5, "shop": "north"},
    {"at": 1_509_289_005_000, "customer": 8, "sku": "b", "price": None, "shop": "south, by the sea"},
]
EXPECTED = [
    Event("id", "view", 1_509_289_004_000, "7", "a", value=1.5, context={"shop": "north"}),
    Event("id", "view", 1_509_289_005_000, "8", "b", context={"shop": "south, by the sea"}),
]


def as_json_lines(path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("\n\n".join(json.dumps(row) for row in SHOPS) + "\n")
    return path


def as_csv(path: Path) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(SHOPS[0]))
        writer.writeheader()
        writer.writerows(SHOPS)
    return path


def as_parquet(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(SHOPS), path)
    return path


@pytest.mark.parametrize("write", [as_json_lines, as_csv, as_parquet])
def test_the_format_does_not_change_the_events(write, tmp_path: Path) -> None:
    file = RowFile(write(tmp_path / "shop"))
    assert [MAP.event(row.fields, "id") for row in file.rows()] == EXPECTED
    if file.columns() is not None:
        MAP.check(file.columns(), "shop")


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        (1_509_289_004_000, 1_509_289_004_000),
        ("1509289004000", 1_509_289_004_000),
        (1_509_289_004_000.0, 1_509_289_004_000),
        ("2017-10-29T14:56:44", 1_509_289_004_000),
        ("2017-10-29 14:56:44.25Z", 1_509_289_004_250),
        ("2017-10-29T15:56:44+01:00", 1_509_289_004_000),
        (datetime(2017, 10, 29, 14, 56, 44), 1_509_289_004_000),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(time: object, milliseconds: int) -> None:
    assert MAP.time_ms({"at": time}, "event_time") == milliseconds


@pytest.mark.parametrize("row", [{"at": "noon"}, {"at": None}, {"at": 1.5}, {"at": True}, {}])
def test_what_is_no_time_is_malformed(row: dict) -> None:
    with pytest.raises(BadRecord) as caught:
        MAP.event(row | {"customer": "7"}, "id")
    assert caught.value.reason == MALFORMED


def test_broken_rows_keep_their_bytes_and_their_place(tmp_path: Path) -> None:
    lines = tmp_path / "x.jsonl"
    lines.write_bytes(b'{"a": 1}\n{"a": \n[1]\n\xff\n')
    assert [(row.fields, row.raw()) for row in RowFile(lines).rows()] == [
        ({"a": 1}, b'{"a": 1}'), (None, b'{"a": '), (None, b"[1]"), (None, b"\xff"),
    ]  # fmt: skip
    table = tmp_path / "x.csv"
    table.write_bytes(b'a,b\n1,2\n3\n"two\nlines",4\n\xff,5\n')
    assert [(row.fields, row.raw()) for row in RowFile(table).rows()] == [
        ({"a": "1", "b": "2"}, b"1,2"), (None, b"3"), ({"a": "two\nlines", "b": "4"}, b'"two\nlines",4'),
        (None, b"\xff,5"),
    ]  # fmt: skip


def test_a_missing_column_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column event_time for event_time, there are at, customer"):
        ColumnMap.parse("user_id=customer").check(RowFile(as_csv(tmp_path / "shop")).columns() or [], "shop.csv")


@pytest.mark.parametrize("text", ["user_id", "user=customer", "user_id="])
def test_a_map_that_names_no_field_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--map"):
        ColumnMap.parse(text)


@pytest.mark.parametrize("name", ["missing.csv", "notes.txt", "broken.parquet"])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_text("hello")
    with pytest.raises(DataError, match=name):
        RowFile(path).columns()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["at", "customer", "sku", "price", "shop", "context", "position"]), values))
def test_arbitrary_rows_are_events_or_bad_records(row: dict) -> None:
    with suppress(BadRecord):
        assert isinstance(MAP.event(row, "id"), Event)
