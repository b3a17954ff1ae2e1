"""Rows taken out of Parquet files: those and no others, at whatever step the run is killed, beside a running writer."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.definitions import aggregation, plan_of, stream_view

from headwater import topics
from headwater.archive_files import live_files
from headwater.events import ARCHIVE_SCHEMA, Event, archive_table
from headwater.forgotten import KeyColumn, Tombstone, computed_in, key_columns, read_tombstones, save_tombstone
from streaming import erasure, parquet_log
from streaming.archive_writer import IMPRESSION_SCHEMA
from streaming.compaction import compact
from streaming.erasure import Eraser, Rewritten, erase, is_value, mentions, rewrite, rows_with, without
from streaming.parquet_log import ParquetLog, read_manifest

NOW = 1_511_000_000_000
CUT = 12
"""Next offset of both partitions when an entity was forgotten."""
PURCHASES = "SELECT user_id, item_id, context['shop'] AS shop, value FROM events WHERE event_type = 'purchase'"


def plan():
    count = [aggregation("n", "count")]
    return plan_of(
        stream_view(count, ("user_id",), PURCHASES, name="by_user"),
        stream_view(count, ("item_id", "shop"), PURCHASES, name="by_item"),
    )


def tombstone(join_key="user_id", value="u1", cut=CUT, topic=topics.EVENTS):
    return Tombstone(join_key, value, NOW, {topic: {0: cut, 1: cut}})


def events(partition, offsets):
    held = [
        Event(f"e{partition}-{at}", "purchase", NOW, f"u{at % 3}", f"i{at % 5}", value=at / 3,
              context={"shop": "ab"[at % 2]} if at % 4 else {})
        for at in offsets
    ]  # fmt: skip
    return archive_table(held, [NOW] * len(held), partition, list(offsets))


def filled(archive: Path) -> Path:
    """Files of a few flushes, of two partitions, and of an import."""
    folder = archive / "events"
    log = ParquetLog(folder, "events", "c1", lambda partition, rows: events(partition, rows))
    for flush in range(0, 20, 5):
        for partition in (0, 1):
            for offset in range(flush, flush + 5):
                log.add(partition, offset, f"2017-11-1{offset % 2}", offset)
        log.flush()
    pq.write_table(events(-1, range(9)), folder / "date=2017-11-10" / "import-0.parquet")
    return folder


def rows(folder: Path) -> list[dict]:
    table = ds.dataset(folder, schema=ARCHIVE_SCHEMA, format="parquet").to_table()
    return sorted(table.to_pylist(), key=lambda row: (row["partition"], row["offset"]))


def left(held: list[dict], is_own) -> list[dict]:
    return [row for row in held if not (is_own(row) and (row["partition"] < 0 or row["offset"] < CUT))]


@pytest.mark.parametrize(
    ("join_key", "value", "is_own"),
    [
        ("user_id", "u1", lambda row: row["user_id"] == "u1"),
        ("item_id", "i3", lambda row: row["item_id"] == "i3"),
        ("shop", "b", lambda row: dict(row["context"]).get("shop") == "b"),
        ("user_id", "nobody", lambda row: False),
    ],
)
def test_an_entitys_rows_before_the_cut_are_gone_and_all_others_equal(tmp_path, join_key, value, is_own):
    folder = filled(tmp_path)
    before, manifest, names = rows(folder), read_manifest(folder), sorted(folder.rglob("*.parquet"))
    eraser = Eraser(topics.EVENTS, plan(), (tombstone(join_key, value),))
    done = erase(tmp_path, folder, eraser.kept)
    assert rows(folder) == left(before, is_own)
    assert done.rows == len(before) - len(rows(folder))
    assert (done.rows > 0) == (value != "nobody")
    assert read_manifest(folder) == manifest
    assert sorted(folder.rglob("*.parquet")) == names
    assert erase(tmp_path, folder, eraser.kept) == Rewritten()


class Killed(BaseException):
    """Nothing may catch it: the process is gone."""


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 30), max_size=3))
@example([0, 1, 2])
def test_kills_at_any_step_leave_every_other_row_and_the_next_run_finishes(tmp_path_factory, monkeypatch, kills):
    archive = tmp_path_factory.mktemp("archive")
    folder = filled(archive)
    before = rows(folder)
    expected = left(before, lambda row: row["user_id"] == "u1")
    eraser = Eraser(topics.EVENTS, plan(), (tombstone(),))
    whole, synchronise = Path.replace, parquet_log._synchronise
    for steps in kills:
        remaining = [steps]

        def step(remaining=remaining):
            remaining[0] -= 1
            if remaining[0] < 0:
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
                erase(archive, folder, eraser.kept)
            except Killed:
                found = rows(folder)
                assert [row for row in found if row in expected] == expected
                assert all(row in before for row in found)
    erase(archive, folder, eraser.kept)
    assert rows(folder) == expected
    assert not list(folder.glob("**/.*.tmp"))


def test_who_is_forgotten_while_files_are_compacted_is_in_none_of_them(tmp_path, monkeypatch):
    """Compacted after the files were listed, so that the listed ones do not count any more; rows are counted once."""
    folder = filled(tmp_path)
    gone = Eraser(topics.EVENTS, plan(), (tombstone(),))
    doomed = sum(int(gone.doomed(pq.read_table(path)).sum()) for path in live_files(folder))
    listed = erasure.superseded
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "superseded", lambda paths: (compact(tmp_path, folder), listed(paths))[1])
        first = erase(tmp_path, folder, gone.kept)
    assert len(live_files(folder)) < len(list(folder.glob("date=*/*.parquet")))
    assert first.rows >= doomed > 0
    for path in folder.glob("date=*/*.parquet"):
        assert not gone.doomed(pq.read_table(path)).any(), path
    assert erase(tmp_path, folder, gone.kept) == Rewritten()


def test_rows_of_files_that_do_not_count_are_taken_out_and_not_counted(tmp_path):
    folder = filled(tmp_path)
    gone = Eraser(topics.EVENTS, plan(), (tombstone(),))
    doomed = sum(int(gone.doomed(pq.read_table(path)).sum()) for path in live_files(folder))
    compact(tmp_path, folder)
    assert erase(tmp_path, folder, gone.kept).rows == doomed
    for path in folder.glob("date=*/*.parquet"):
        assert not gone.doomed(pq.read_table(path)).any(), path


def test_a_log_leaves_out_who_was_forgotten_after_the_rows_were_read(tmp_path):
    """Their offsets count as dealt with, and a restart goes on behind them."""
    log = ParquetLog(tmp_path, "events", "c1", lambda partition, held: events(partition, held))
    for offset in range(CUT + 6):
        log.add(0, offset, "2017-11-10", offset)
    log.flush(Eraser(topics.EVENTS, plan(), (tombstone(),)).kept)
    assert [row["offset"] for row in rows(tmp_path)] == [at for at in range(CUT + 6) if at % 3 != 1 or at >= CUT]
    manifest = read_manifest(tmp_path)
    assert manifest.next_offsets == {0: CUT + 6}
    assert manifest.totals == {"rows": CUT + 6, "forgotten": 4}
    log.add(0, CUT + 6, "2017-11-10", 1)
    log.flush(lambda table: table.slice(0, 0))
    assert read_manifest(tmp_path).next_offsets == {0: CUT + 7}
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_an_impression_is_its_users_and_not_whoever_it_mentions(tmp_path):
    held = [{"user_id": user, "items": [{"item_id": "u1"}], "context": {"user_id": "u1"}} for user in ("u1", "ü", "u2")]
    values = [*map(json.dumps, held), "not JSON u1", '["u1"]']
    table = pa.table(
        {"value": values, "ingest_time": [NOW] * 5, "partition": [0] * 5, "offset": range(5)}, schema=IMPRESSION_SCHEMA
    )
    for user, places in (("u1", [0]), ("ü", [1]), ("u3", [])):
        eraser = Eraser(topics.IMPRESSIONS, plan(), (tombstone(value=user, topic=topics.IMPRESSIONS),))
        assert eraser.doomed(table).nonzero()[0].tolist() == places
    (tmp_path / "date=2017-11-10").mkdir()
    pq.write_table(table, tmp_path / "date=2017-11-10" / "p.parquet")
    assert mentions(tmp_path, "item_id", "u1") == 3
    assert mentions(tmp_path, "user_id", "ü") == 1
    assert mentions(tmp_path, "item_id", "u2") == 0


def test_columns_of_other_types_are_compared_as_the_texts_that_keys_are(tmp_path):
    table = pa.table({"user_id": pa.array([7, 77, None], pa.int64()), "x": [1.5, 2.5, 3.5]})
    path = tmp_path / "profile.parquet"
    pq.write_table(table, path)
    assert rows_with(path, "user_id", "7") == 1
    assert rows_with(path, "item_id", "7") == 0
    assert not is_value(table, KeyColumn("item_id"), "7").any()
    assert rewrite(path, without("user_id", "7")) == Rewritten(1, 1)
    assert pq.read_table(path).equals(table.slice(1))


def test_of_two_tombstones_for_one_entity_the_later_stays(tmp_path):
    for one in (tombstone(cut=3), tombstone("item_id", "i1"), tombstone(cut=9)):
        save_tombstone(tmp_path, one)
    assert read_tombstones(tmp_path) == (tombstone("item_id", "i1"), tombstone(cut=9))


def test_a_key_is_found_where_the_projection_takes_it_from():
    source = plan().sources[0]
    assert key_columns(plan(), source, "shop") == {KeyColumn("context", "shop")}
    assert key_columns(plan(), source, "user_id") == {KeyColumn("user_id")}
    assert computed_in(plan(), "shop") == ()
    lower = "SELECT LOWER(user_id) AS user_id, value FROM events"
    computed = plan_of(stream_view([aggregation("n", "count")], ("user_id",), lower, name="lowered"))
    assert computed_in(computed, "user_id") == ("lowered",)
