"""Base tiles under live ones in a real Valkey, read back and compared with Spark."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from support.archives import START, Stored, draw, plan_with, rows_of, user_and_pair_views, write
from support.tiles import tile_columns

from batch.arrow_shuffle import buckets_for, key_hashes
from batch.backfill import backfill
from batch.events import archive_of
from batch.parity import compare
from batch.progress import Marks
from benchmarks.oracle import fold
from headwater.clock import ManualClock
from headwater.errors import DataError, UnavailableError
from headwater.online.codec import LIVE
from headwater.online.cuts import Cut, read_cuts, views_to_backfill, write_cuts
from headwater.online.keys import entity_key, project_prefix
from headwater.online.reader import OnlineReader
from headwater.online.writer import OnlineWriter
from headwater.plan import DAY_MS, BatchView, Column, FeaturePlan
from headwater.settings import Settings
from streaming.parquet_log import MANIFEST, Manifest

pytestmark = pytest.mark.integration
CUT = 70
PROFILE = BatchView(
    name="profile", join_keys=("user_id",), path="", timestamp_field="event_timestamp", created_field="created",
    columns=(Column(name="age", dtype="int64"), Column(name="share", dtype="float64")), ttl_ms=0, id="0123456789abcdef",
)  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> tuple[Settings, list[Stored], list[Stored]]:
    """Two days of import, then two of a stream whose arrivals are late and doubled."""
    imported = draw(150, seed=1, late=False)
    streamed = [
        replace(s, event=replace(s.event, event_id="s" + s.event.event_id, event_time=s.event.event_time + 2 * DAY_MS),
                ingest_time=START + 4 * DAY_MS + s.offset)  # arrival is in the order of offsets
        for s in draw(150, seed=2)
    ]  # fmt: skip
    write(imported + streamed, Settings(state_dir=tmp_path).events_dir)
    return Settings(state_dir=tmp_path), imported, streamed


def test_base_and_live_tiles_read_as_spark_computes(
    spark: Any, valkey: str, valkey_client: redis.Redis, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    """And a tile that is changed is found, by feature and entity; running the backfill again changes nothing."""
    settings, _, streamed = history
    settings = settings.model_copy(update={"redis": valkey})
    plan = plan_with(*user_and_pair_views(ttl_ms=30 * 3_600_000))
    done = backfill(spark, settings, plan, now_ms=START)
    before = _everything(valkey_client)
    assert backfill(spark, settings, plan, now_ms=START).tiles == done.tiles > 0
    assert _everything(valkey_client) == before

    _stream(OnlineWriter(valkey_client, plan.project), plan, streamed)
    parity = compare(spark, settings, plan, cells=3_000)
    assert parity.cells_compared >= 3_000
    assert (parity.cells_mismatched, parity.in_flight, parity.first) == (0, 0, None)

    for key in valkey_client.scan_iter(match=project_prefix(plan.project) + b"*"):
        valkey_client.delete(key)
    lost = compare(spark, settings, plan, cells=300)
    assert lost.cells_mismatched > 0
    assert lost.first is not None
    assert sum(lost.by_feature.values()) == lost.cells_mismatched
    assert compare(spark, settings, plan, cells=300, fresh_after_ms=0).in_flight == lost.cells_mismatched


def test_a_view_with_a_cut_is_backfilled_up_to_it_once_the_archive_has_come_there(
    spark: Any, valkey: str, valkey_client: redis.Redis, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    """The import and what lies below the cut, each event once; one view folded whole, one with a cut."""
    settings, _, streamed = history
    settings = settings.model_copy(update={"redis": valkey})
    plan = plan_with(*user_and_pair_views(ttl_ms=30 * 3_600_000))
    by_user, by_pair = plan.views
    cut = Cut(cluster="kafka", offsets={0: CUT})
    write_cuts(valkey_client, "test", {table.id: Cut(cluster="kafka") for table in by_user.tables})
    write_cuts(valkey_client, "test", {table.id: cut for table in by_pair.tables})
    archived(settings, CUT - 1)
    with pytest.raises(
        UnavailableError, match=f"by_pair: .* offset {CUT} of partition 0 .* has come to {CUT - 1}. Run"
    ):
        backfill(spark, settings, plan, now_ms=START)
    archived(settings, CUT)
    assert views_to_backfill(plan, read_cuts(valkey_client, "test")) == ["by_pair"]
    backfill(spark, settings, plan, now_ms=START)
    assert views_to_backfill(plan, read_cuts(valkey_client, "test")) == []

    known = {s.event.event_id for s in streamed if s.offset < CUT}
    behind = [s for s in streamed if s.offset >= CUT and s.event.event_id not in known]
    assert len([s for s in streamed if s.offset >= CUT]) > len(behind)  # a copy straddles the cut
    writer = OnlineWriter(valkey_client, plan.project)
    _stream(writer, plan_with(by_user), streamed)
    _stream(writer, plan_with(by_pair), behind)
    parity = compare(spark, settings, plan, cells=3_000)
    assert (parity.cells_mismatched, parity.first) == (0, None)


def test_a_view_that_was_dropped_is_backfilled_only_once_the_stream_knows_of_it(
    spark: Any, valkey: str, valkey_client: redis.Redis, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    settings, plan = history[0].model_copy(update={"redis": valkey}), plan_with(*user_and_pair_views())
    tables = plan.views[0].tables
    write_cuts(valkey_client, "test", {table.id: Cut(cluster="kafka", offsets={0: 1}) for table in tables})
    OnlineWriter(valkey_client, plan.project).drop([table.field for table in tables])
    with pytest.raises(UnavailableError, match="by_user: it was dropped"):
        backfill(spark, settings, plan, now_ms=START)


def archived(settings: Settings, next_offset: int) -> None:
    """Say how far the archive has come."""
    (settings.events_dir / MANIFEST).write_text(Manifest("events", "kafka", {0: next_offset}).to_json())


def test_an_event_that_was_imported_and_sent_counts_once_whichever_came_first(
    spark: Any, valkey: str, valkey_client: redis.Redis, tmp_path: Path
) -> None:
    """Some copies are on the topic before the backfill, others come after it and are mended by the next."""
    settings = Settings(state_dir=tmp_path, redis=valkey)
    plan = plan_with(*user_and_pair_views(ttl_ms=30 * 3_600_000))
    imported, own = draw(150, seed=1, late=False), draw(60, seed=2)
    own = [replace(s, event=replace(s.event, event_id="s" + s.event.event_id)) for s in own]
    copies = [
        replace(s, ingest_time=s.ingest_time + 3_600_000 * (at % 3), partition=0, offset=1_000 + at)
        for at, s in enumerate(imported[::3])
    ]  # fmt: skip
    before, after = copies[::2], copies[1::2]
    write(imported + own + before, settings.events_dir)
    backfill(spark, settings, plan, now_ms=START)
    writer = OnlineWriter(valkey_client, plan.project)
    _stream(writer, plan, own + before)
    assert compare(spark, settings, plan, cells=2_000).first is None
    _expect_naive(valkey_client, plan, imported + own + before)

    _stream(writer, plan, own + before + after)
    write([replace(s, partition=1) for s in after], settings.events_dir)
    assert compare(spark, settings, plan, cells=2_000).cells_mismatched > 0, "they are in base and in live"
    backfill(spark, settings, plan, now_ms=START)
    assert compare(spark, settings, plan, cells=2_000).first is None
    _expect_naive(valkey_client, plan, imported + own + copies)
    held = _everything(valkey_client)
    backfill(spark, settings, plan, now_ms=START)
    assert _everything(valkey_client) == held


def _expect_naive(client: redis.Redis, plan: FeaturePlan, stored: list[Stored]) -> None:
    """Every value of every entity, at once and as tiles leave the windows."""
    newest = max(one.event.event_time for one in stored)
    for view in plan.views:
        rows = rows_of(stored, view.join_keys)
        keys = sorted({row.key for row in rows})
        for now in (newest + 1, newest + 3_600_000 * 5, newest + DAY_MS):
            read = OnlineReader(client, plan, ManualClock(now)).read_views({view.name: keys}, now)[view.name]
            for at, key in enumerate(keys):
                is_found, values = fold(view, rows, key, now, known=False)
                assert (bool(read.found[at]), _told(read.values, at)) == (is_found, values)


def test_backfill_alone_reads_as_the_naive_window(
    spark: Any, valkey: str, valkey_client: redis.Redis, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    settings, imported, _ = history
    (view, _) = user_and_pair_views()
    plan = plan_with(view)
    counted = backfill(spark, settings, plan, now_ms=START, materialize=False)
    assert valkey_client.dbsize() == 0
    assert backfill(spark, settings.model_copy(update={"redis": valkey}), plan, now_ms=START).tiles == counted.tiles

    rows = rows_of(imported, view.join_keys)
    now = START + 2 * DAY_MS
    users = sorted({row.key for row in rows})
    read = OnlineReader(valkey_client, plan, ManualClock(now)).read_views({view.name: users}, now)[view.name]
    for at, user in enumerate(users):
        _, values = fold(view, rows, user, now, known=False)
        assert _told(read.values, at) == values


def test_the_newest_ready_made_row_is_written(
    spark: Any, valkey: str, valkey_client: redis.Redis, tmp_path: Path
) -> None:
    """Of rows up to now: by event time, then created time, then a total order; nulls stay null."""
    instant = lambda day: pa.scalar(START + day * DAY_MS, pa.timestamp("ms", "UTC")).as_py()  # noqa: E731
    rows = [
        ("1", 0, 0, 30, 0.5), ("1", 1, 1, 31, None), ("1", 9, 9, 99, 0.9),
        ("2", 1, 2, 40, 0.1), ("2", 1, 3, 41, 0.2), ("2", 1, 3, 42, 0.2),
    ]  # fmt: skip
    users, times, created, ages, shares = zip(*rows, strict=True)
    table = pa.table({
        "user_id": users, "age": pa.array(ages, pa.int64()), "share": shares,
        "event_timestamp": pa.array(list(map(instant, times))), "created": pa.array(list(map(instant, created))),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "profile.parquet")
    view = PROFILE.model_copy(update={"path": str(tmp_path / "profile.parquet")})
    plan = plan_with(batch_views=(view,))
    settings = Settings(state_dir=tmp_path, redis=valkey)
    assert backfill(spark, settings, plan, now_ms=START + 5 * DAY_MS).rows == 2
    keys = [("1",), ("2",), ("3",)]
    read = OnlineReader(valkey_client, plan, ManualClock(START + 5 * DAY_MS)).read_views({"profile": keys})["profile"]
    assert read.found.tolist() == [True, True, False]
    assert _told(read.values, 0) == {"age": 31.0, "share": None}
    assert _told(read.values, 1) == {"age": 42.0, "share": 0.2}


def _stream(writer: OnlineWriter, plan: FeaturePlan, streamed: list[Stored]) -> None:
    for view in plan.views:
        for table in view.tables:
            keys, columns, payloads = tile_columns(table, rows_of(streamed, view.join_keys), LIVE)
            writer.write_tiles(table, view.join_keys, keys, columns, payloads)


def _everything(client: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    return {key: client.hgetall(key) for key in client.scan_iter(match=entity_key(project_prefix("test"), "*", "*"))}


def _told(values: Any, at: int) -> dict[str, Any]:
    return {
        name: None if not isinstance(held, list) and np.isnan(held[at]) else held[at] for name, held in values.items()
    }


def test_a_topic_without_history_has_no_tiles_beside_one_that_has(
    spark: Any, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    """And where no topic has any, that is said."""
    settings, _, _ = history
    user, pair = user_and_pair_views()
    plan = plan_with(user, pair.model_copy(update={"source": "orders"}))
    orders = plan.sources[0].model_copy(update={"name": "orders", "topic": "orders"})
    both = plan.model_copy(update={"sources": (*plan.sources, orders)})
    told: list[str] = []
    done = backfill(spark, settings, both, now_ms=START, materialize=False, report=told.append)
    assert (done.views, told) == (2, ["by_user", "by_pair"])
    assert done.tiles == backfill(spark, settings, plan_with(user), now_ms=START, materialize=False).tiles > 0
    with pytest.raises(DataError, match="orders: no archived events"):
        backfill(spark, settings, both, now_ms=START, views=["by_pair"], materialize=False)


def test_a_run_that_was_ended_goes_on_after_the_buckets_it_had_written(
    spark: Any, valkey: str, valkey_client: redis.Redis, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    """It leaves those alone, forgets at its end that they were done, and of other events nothing counts as done."""
    settings = history[0].model_copy(update={"redis": valkey})
    (view, _) = user_and_pair_views()
    plan = plan_with(view)
    whole = backfill(spark, settings, plan, now_ms=START)
    before = _everything(valkey_client)
    archive = archive_of(spark, settings, plan, "events", below={})
    buckets = buckets_for(archive.count)
    users = sorted({key.decode().rpartition("=")[2] for key in before})
    bucket_of = dict(zip(users, (key_hashes([pa.chunked_array([users])]) % np.uint64(buckets)).tolist(), strict=True))
    first = bucket_of[users[0]]

    for events, left_alone in ((archive.fingerprint, {first}), ("other events", set())):
        for key in valkey_client.keys(project_prefix(plan.project) + b"*"):
            valkey_client.delete(key)
        Marks(valkey, plan.project, view.tables, events, buckets).put(first, [0] * len(view.tables))
        done = backfill(spark, settings, plan, now_ms=START)
        written = {key.decode().rpartition("=")[2] for key in _everything(valkey_client)}
        assert written == {user for user in users if bucket_of[user] not in left_alone}
        assert (done.tiles < whole.tiles) == bool(left_alone)
        assert not valkey_client.exists(project_prefix(plan.project) + b"backfill")
    assert backfill(spark, settings, plan, now_ms=START).tiles == whole.tiles
    assert _everything(valkey_client) == before


def test_dates_of_which_nothing_is_archived_are_told(
    spark: Any, history: tuple[Settings, list[Stored], list[Stored]]
) -> None:
    settings, _, _ = history
    (view, _) = user_and_pair_views()
    dates = sorted(folder.name for folder in settings.events_dir.glob("date=*"))
    assert backfill(spark, settings, plan_with(view), now_ms=START, materialize=False).holes == {}
    shutil.rmtree(settings.events_dir / dates[1])
    done = backfill(spark, settings, plan_with(view), now_ms=START, materialize=False)
    assert done.holes == {"events": [dates[1].removeprefix("date=")]}


KILLED = """
import sys
from pathlib import Path
from support.archives import START, plan_with, user_and_pair_views
from batch.backfill import backfill
from batch.session import spark_session
from headwater.settings import Settings

settings = Settings(state_dir=Path(sys.argv[1]), redis=sys.argv[2], spark_heap_mb=1024)
backfill(spark_session(settings), settings, plan_with(user_and_pair_views()[1]), now_ms=START)
"""


def test_after_a_kill_the_next_run_writes_what_is_missing(
    spark: Any, valkey: str, valkey_client: redis.Redis, tmp_path: Path
) -> None:
    """A process that is killed after its first bucket leaves marks of some, and the next run ends in the same bytes."""
    write(draw(20_000, users=400, late=False), Settings(state_dir=tmp_path).events_dir)
    settings = Settings(state_dir=tmp_path, redis=valkey)
    plan = plan_with(user_and_pair_views()[1])
    whole = backfill(spark, settings, plan, now_ms=START)
    before = _everything(valkey_client)
    valkey_client.flushall()

    marks = project_prefix(plan.project) + b"backfill"
    folder = Path(__file__).parents[1]
    killed = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), valkey], start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parent), str(folder)])},
    )  # fmt: skip
    try:
        while not valkey_client.hlen(marks):
            assert killed.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    tables = len(plan.views[0].tables)
    assert tables <= valkey_client.hlen(marks) < 4 * tables
    assert backfill(spark, settings, plan, now_ms=START).tiles == whole.tiles
    assert _everything(valkey_client) == before
    assert not valkey_client.exists(marks)
