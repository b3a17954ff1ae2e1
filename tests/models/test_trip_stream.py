"""Trips read from the archive in parts, against those of the whole archive in memory; and how much memory they take."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.archived import archive

from headwater.errors import DataError
from models.interactions import load_dataset
from models.trip_log import in_memory
from models.trip_stream import as_table, as_trips, first_known, stream_trips
from models.trips import Trips

HOUR_MS = 3_600_000
CUTOFF = 200 * HOUR_MS


def listed(home: Path) -> None:
    """A catalogue that lacks some of what is bought."""
    pq.write_table(
        pa.table({"item_id": ["i0", "i1", "never"], "name": ["Milk", "Bread", "Eggs"]}), home / "items.parquet"
    )
    pq.write_table(pa.table({"user_id": ["u0", "elsewhere"], "age": [3, 4]}), home / "users.parquet")


def by_trip(blocks) -> dict:
    """All that is held of each trip, by user and time."""
    return {
        (int(trips.user[n]), int(trips.at_ms[n])): (
            trips.items[trips.bounds[n] : trips.bounds[n + 1]].tolist(),
            trips.is_first[trips.bounds[n] : trips.bounds[n + 1]].tolist(),
            trips.recent[n].tolist(),
            trips.ages[n].tolist(),
        )
        for trips in blocks
        for n in range(len(trips))
    }


lines = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 210)), min_size=1, max_size=60
)  # user, item, hour


@given(lines, st.integers(1, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_of_the_archive_make_the_trips_of_the_whole(tmp_path_factory, drawn, at_once):
    """However many parts there are, with copies of events and events without an item."""
    home = tmp_path_factory.mktemp("home")
    listed(home)
    rows = [(f"u{user}", None if item == 6 else f"i{item}", hour * HOUR_MS) for user, item, hour in [(0, 0, 0), *drawn]]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "event_time"])
    archive(home / "events", frame)
    for file in (home / "events").glob("*/*.parquet"):
        table = pq.read_table(file)
        at = table.schema.get_field_index("ingest_time")
        pq.write_table(
            table.set_column(at, table.schema.field(at), pa.array([10**15] * len(table))), file.with_stem("copy")
        )
    found = stream_trips(home / "events", home, CUTOFF, 3, home / "trips", at_once)
    data = load_dataset(home / "events", home, CUTOFF)
    whole = in_memory(data, 3)
    assert found.users.ids.values.tolist() == whole.users.ids.values.tolist()
    assert found.users.traits.tolist() == whole.users.traits.tolist()
    assert found.items.table().equals(whole.items.table())
    assert by_trip(found.log.blocks) == by_trip(whole.log.blocks)
    for name in ("n_trips", "n_purchases", "first_ms", "last_ms"):
        assert getattr(found.log, name) == getattr(whole.log, name), name
    assert found.log.counts.tolist() == whole.log.counts.tolist()


def purchases(n: int) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    users, items = generator.integers(0, 40, n), generator.integers(0, 50, n)
    ids = {"user_id": [f"u{user}" for user in users], "item_id": [f"i{item}" for item in items]}
    return pd.DataFrame(ids | {"event_time": generator.integers(0, 150 * HOUR_MS, n)})


@pytest.fixture
def home(tmp_path):
    listed(tmp_path)
    return tmp_path


def test_the_same_archive_makes_the_same_blocks(home):
    archive(home / "events", purchases(500))
    first, second = (stream_trips(home / "events", home, CUTOFF, 3, home / name, 100) for name in ("a", "b"))
    assert first.log.digest == second.log.digest
    assert len(first.log.blocks) == len(second.log.blocks) == 5
    assert [by_trip([block]) for block in first.log.blocks] == [by_trip([block]) for block in second.log.blocks]


def test_each_block_is_a_sample_of_all_trips(home):
    """Not the trips of some users, nor of some days: what a batch holds is drawn from one block."""
    archive(home / "events", purchases(3_000))
    log = stream_trips(home / "events", home, CUTOFF, 3, home / "trips", 1_000).log
    assert len(log.blocks) == 3
    for block in log.blocks:
        assert len(np.unique(block.user)) == 40
        assert 50 * HOUR_MS < block.at_ms.mean() < 100 * HOUR_MS
        assert len(block) == pytest.approx(log.n_trips / 3, rel=0.15)


def test_another_purchase_is_another_digest(home):
    archive(home / "events", purchases(50))
    first = stream_trips(home / "events", home, CUTOFF, 3, home / "trips")
    archive(home / "events", purchases(1), name="import-1")
    assert stream_trips(home / "events", home, CUTOFF, 3, home / "trips").log.digest != first.log.digest


def test_nothing_before_the_cutoff_is_refused(home):
    archive(home / "events", purchases(50))
    with pytest.raises(DataError, match="no purchase event lies before 0"):
        stream_trips(home / "events", home, 0, 3, home / "trips")
    with pytest.raises(DataError, match="the archive holds no events"):
        stream_trips(home / "nowhere", home, CUTOFF, 3, home / "trips")


def test_of_copies_the_first_known_counts():
    events = pa.table(
        {
            "event_id": ["b", "a", "a", "b", "c"], "user_id": ["late", "first", "second", "known", "nobody"],
            "item_id": ["x", "y", "z", "w", None], "event_time": pa.array([1, 2, 3, 4, 5], pa.int64()),
            "ingest_time": pa.array([9, 5, 5, 8, 1], pa.int64()), "partition": pa.array([0, 0, 1, 1, 0], pa.int32()),
            "offset": pa.array([0, 7, 0, 9, 1], pa.int64()),
        }
    )  # fmt: skip
    assert first_known(events)["user_id"].to_pylist() == ["first", "known"]


def test_trips_come_back_from_their_table():
    trips = Trips(
        user=np.array([3, 1], np.int32), at_ms=np.array([10, 20]), bounds=np.array([0, 1, 3]),
        items=np.array([5, 6, 7], np.int32), is_first=np.array([True, False, True]),
        recent=np.array([[1, -1], [2, 3]], np.int32), ages=np.array([[4, 0], [1, 15]], np.uint8),
    )  # fmt: skip
    again = as_trips(as_table(trips))
    for name in Trips.__dataclass_fields__:
        assert getattr(again, name).tolist() == getattr(trips, name).tolist(), name
        assert getattr(again, name).dtype == getattr(trips, name).dtype, name
    picked = trips.take(np.array([1, 0]))
    assert by_trip([picked]) == by_trip([trips])
    assert picked.items.tolist() == [6, 7, 5]


def test_memory_does_not_grow_with_the_purchases(tmp_path):
    """Eight times as many take a little more at the peak."""
    peaks = {}
    for n in (30_000, 240_000):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tower_memory", str(tmp_path / str(n)), str(n), "8192"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks[n] = float(done.stdout)
    assert peaks[240_000] - peaks[30_000] < 30
