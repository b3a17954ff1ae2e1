"""Ready-made rows that begin to hold: which views have some, and the job that writes them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from support.archives import plan_with

from headwater.clock import ManualClock
from headwater.online.reader import OnlineReader
from headwater.plan import DAY_MS, BatchView, Column, FeaturePlan
from headwater.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore")
WEEK = 1_511_758_800_000
"""A promotion begins then, and the next one a week later."""


def promotions(folder: Path, kind: pa.DataType, dtype: str = "float64") -> FeaturePlan:
    """A view of two weeks of one product."""
    instants = pa.array([WEEK, WEEK + 7 * DAY_MS], pa.timestamp("ms")).cast(kind, safe=False)
    pq.write_table(pa.table({"item_id": ["1", "1"], "at": instants, "share": [0.25, 0.5]}), folder / "promoted.parquet")
    columns = (Column(name="share", dtype=dtype),)
    view = BatchView(
        name="promoted", join_keys=("item_id",), path=str(folder / "promoted.parquet"), timestamp_field="at",
        created_field=None, columns=columns, ttl_ms=7 * DAY_MS, id=dtype.encode().hex()[:12].zfill(16),
    )  # fmt: skip
    return plan_with(batch_views=(view,))


@pytest.mark.parametrize("kind", [pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("s", "UTC")])
def test_a_row_has_begun_once_the_clock_is_there(tmp_path: Path, kind: pa.DataType) -> None:
    from batch.begun import ReadyMade

    views = ReadyMade(Settings(state_dir=tmp_path), promotions(tmp_path, kind), lambda: 0)
    assert views.begun(0, WEEK - 1) == []
    assert views.begun(0, WEEK) == views.begun(WEEK - 1, WEEK) == ["promoted"]
    assert views.begun(WEEK, WEEK + 7 * DAY_MS - 1) == []
    assert views.begun(WEEK, WEEK + 8 * DAY_MS) == ["promoted"]


def test_what_feast_materializes_is_left_to_it(tmp_path: Path) -> None:
    from batch.begun import ReadyMade

    plan = promotions(tmp_path, pa.timestamp("us", "UTC"), dtype="string")
    assert ReadyMade(Settings(state_dir=tmp_path), plan, lambda: 0).begun(0, WEEK) == []


def test_the_sensor_asks_once_for_each_row_that_begins(tmp_path: Path) -> None:
    import dagster as dg

    from batch.assets import defs
    from batch.begun import ReadyMade, ready_made_rows, rows_have_begun

    assert defs.get_sensor_def("rows_have_begun").job_name == "ready_made"
    clock, cursor, asked = ManualClock(0), None, []
    views = ReadyMade(Settings(state_dir=tmp_path), promotions(tmp_path, pa.timestamp("us", "UTC")), clock.now_ms)
    for now_ms in (WEEK, WEEK + 1, WEEK + DAY_MS, WEEK + 7 * DAY_MS, WEEK + 7 * DAY_MS):
        clock.set(now_ms)
        result = rows_have_begun(dg.build_sensor_context(cursor=cursor), ready_made=views)
        cursor = result.cursor
        asked += [(now_ms, request.run_config) for request in result.run_requests or ()]
    assert [now_ms for now_ms, _ in asked] == [WEEK, WEEK + 7 * DAY_MS]

    written: list[list[str]] = []

    class Told:
        def write(self, views: list[str]) -> int:
            written.append(views)
            return 1

    made = dg.materialize([ready_made_rows], resources={"ready_made": Told()}, run_config=asked[0][1])
    assert made.success
    assert written == [["promoted"]]


@pytest.mark.integration
def test_a_promotion_is_served_from_when_it_begins(
    spark: Any, valkey: str, valkey_client: redis.Redis, tmp_path: Path
) -> None:
    from batch.begun import ReadyMade

    plan, clock = promotions(tmp_path, pa.timestamp("us", "UTC")), ManualClock(WEEK - 1)
    views = ReadyMade(Settings(state_dir=tmp_path, redis=valkey), plan, clock.now_ms)
    reader, since_ms, served = OnlineReader(valkey_client, plan, clock), 0, []
    for now_ms in (WEEK - 1, WEEK, WEEK + DAY_MS, WEEK + 7 * DAY_MS, WEEK + 15 * DAY_MS):
        clock.set(now_ms)
        if begun := views.begun(since_ms, now_ms):
            views.write(begun)
        since_ms = now_ms
        read = reader.read_views({"promoted": [("1",)]})["promoted"]
        served.append(read.values["share"][0] if read.found[0] else None)
    assert served == [None, 0.25, 0.25, 0.5, None]
