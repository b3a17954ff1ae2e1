"""What was announced joins the shop's table, as the topic of a real broker tells it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.catalogue import with_announced, write_catalogue
from headwater import topics
from headwater.announced import announced_items
from headwater.errors import UnavailableError
from headwater.kafka_io import Record, Sender
from headwater.settings import Settings

TABLE = pa.table({"item_id": ["1", "2"], "name": ["Quince", None], "price": pa.array([1.5, None], pa.float32())})


def test_the_table_counts_and_others_get_its_columns() -> None:
    told = {"2": {"name": "Pear"}, "4": {"name": "Fig", "price": "2.25", "shelf": "9"}, "3": {"price": "dear"}}
    both = with_announced(TABLE, told)
    assert both.schema == TABLE.schema
    assert both.to_pylist()[:2] == TABLE.to_pylist()
    assert both.to_pylist()[2:] == [
        {"item_id": "3", "name": None, "price": None}, {"item_id": "4", "name": "Fig", "price": 2.25},
    ]  # fmt: skip
    assert with_announced(TABLE, {}) == TABLE


def test_without_a_broker_nothing_is_forgotten_in_silence(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "items.parquet")
    with pytest.raises(UnavailableError, match="no answer"):
        write_catalogue(Settings(state_dir=tmp_path, kafka="127.0.0.1:1"), tmp_path)


@pytest.mark.integration
def test_what_was_taken_back_or_cannot_be_read_is_left(kafka: str, tmp_path: Path) -> None:
    sender = Sender(kafka)
    for item, value in {
        "f-1": json.dumps({"item_id": "f-1", "name": "Fig", "price": 3}).encode(), "f-2": b"{}", "f-3": b"{nothing",
        "f-4": json.dumps({"item_id": "f-4"}).encode(), "1": json.dumps({"item_id": "1", "name": "Other"}).encode(),
    }.items():  # fmt: skip
        sender.send(Record(topics.ITEMS, item.encode(), value, 1))
    sender.send(Record(topics.ITEMS, b"f-4", None, 2))
    sender.settle()
    found = {item: told for item, told in announced_items(kafka).items() if item in ("f-1", "f-2", "f-3", "f-4", "1")}
    assert found == {"f-1": {"name": "Fig", "price": "3"}, "1": {"name": "Other"}}
    pq.write_table(TABLE, tmp_path / "items.parquet")
    folder = write_catalogue(Settings(state_dir=tmp_path, kafka=kafka), tmp_path)
    rows = {row["item_id"]: row for row in pq.read_table(folder / "items.parquet").to_pylist()}
    assert rows["1"] == {"item_id": "1", "name": "Quince", "price": 1.5}
    assert rows["f-1"] == {"item_id": "f-1", "name": "Fig", "price": 3.0}
    assert not {"f-2", "f-3", "f-4"} & rows.keys()
    for item in ("f-1", "1"):
        sender.send(Record(topics.ITEMS, item.encode(), None, 3))
    sender.settle()
