"""What a start goes on from: the checkpoint, the checkpoint under other views, or the first event."""

import os
from pathlib import Path

import pytest
from support.definitions import HOUR, aggregation, plan_of, stream_view

from headwater.errors import UnavailableError
from headwater.kafka_io import describe
from headwater.online.cuts import Cut
from headwater.runtime.ports import free_port
from headwater.settings import Settings
from streaming import lineage
from streaming.job import cluster_of, program_of
from streaming.layout import layout_of, why_not
from streaming.lineage import Found, Lineage, decide, drop_others, newest_checkpoint, next_start, read_lineage

DAY = 24 * HOUR


def counting(name, keys=("user_id",), *more, **options):
    return stream_view([aggregation("n", "count", hop=HOUR), *more], keys, name=name, **options)


OLD, OTHER = counting("old"), counting("other")
PLAN, BOTH = plan_of(OLD), plan_of(OTHER, OLD)
CHECKPOINT = Path("run/chk-1")


@pytest.fixture
def settings(tmp_path):
    return Settings(state_dir=tmp_path)


def complete(settings, name, at):
    metadata = settings.checkpoints_dir / name / "_metadata"
    metadata.parent.mkdir(parents=True)
    metadata.touch()
    os.utime(metadata, (at, at))
    return metadata.parent


def tables(plan, *views):
    return [table.id for view in plan.views for table in view.tables if not views or view.name in views]


def after(plan, *later, cluster="kafka-1"):
    """The lineage of a plan, changed to each of the others in turn."""
    kept = decide(plan, Found(None, None, cluster, {})).lineage
    for one in later:
        kept = decide(one, Found(kept, CHECKPOINT, cluster, None)).lineage
    return kept.model_copy(update={"uncut": ()})


def started(kept, plan, cuts=None, cluster="kafka-1"):
    return decide(plan, Found(kept, CHECKPOINT, cluster, cuts))


def test_the_newest_complete_checkpoint_of_any_earlier_run_is_taken(settings):
    complete(settings, "run-b/chk-9", 100)
    newest = complete(settings, "run-a/chk-2", 200)
    (settings.checkpoints_dir / "run-a" / "chk-3").mkdir()  # torn: it has no metadata
    assert newest_checkpoint(settings.checkpoints_dir) == newest.resolve()


def test_a_first_start_replays_and_has_a_group_of_its_own():
    start = decide(PLAN, Found(None, None, "kafka-1", {}))
    assert (start.action, start.why, start.checkpoint) == ("replay", "there is no checkpoint", None)
    assert start.lineage.group.startswith("headwater-test-")


def test_the_same_views_over_the_same_log_resume():
    kept = after(PLAN)
    start = started(kept, PLAN, {table: Cut(cluster="kafka-1") for table in tables(PLAN)})
    assert (start.action, start.lineage, start.checkpoint) == ("resume", kept, CHECKPOINT)


def test_views_that_are_added_changed_and_removed_take_the_checkpoint_as_a_savepoint():
    changed = counting("old", ("user_id",), aggregation("most", "max", "value", hop=HOUR))
    kept = after(PLAN)
    start = started(kept, plan_of(changed, OTHER))
    assert (start.action, start.added, start.changed, start.removed) == ("savepoint", ("other",), ("old",), ())
    assert start.backfill == ("old", "other")
    assert (start.lineage.group, start.checkpoint) == (kept.group, CHECKPOINT)
    start = started(after(BOTH), PLAN)
    assert (start.action, start.removed, start.backfill) == ("savepoint", ("other",), ())


def test_a_table_keeps_its_number_and_none_gets_that_of_one_that_is_gone():
    kept, third = after(BOTH, PLAN), counting("third")
    plan = plan_of(third, OLD)
    grown = started(kept, plan).lineage
    assert grown.layout.tables == (*tables(BOTH), *tables(plan, "third"))
    assert list(grown.views) == tables(plan)
    numbers = {one.view.name: one.number for one in program_of(plan, Settings(), layout=grown.layout).targets}
    assert numbers == {"old": tables(BOTH).index(tables(PLAN)[0]), "third": 2}


def test_a_longer_window_is_another_table():
    """What a table keeps in the store is cut to its longest window, so that the same one cannot read further back."""
    longer = stream_view([aggregation("n", "count", window=2 * DAY, hop=HOUR)], name="old")
    assert tables(plan_of(longer)) != tables(PLAN)
    assert started(after(PLAN), plan_of(longer)).backfill == ("old",)


DISTINCT = aggregation("kinds", "approx_count_distinct", "item_id", hop=HOUR)
MANY = [aggregation(f"s{at}", "sum", f"v{at}", hop=HOUR) for at in range(3)]
PROJECTION = "SELECT user_id, value AS v0, value + 1 AS v1, value + 2 AS v2, event_time FROM events"


@pytest.mark.parametrize(("view", "reason"), [
    (counting("other", ("user_id",), DISTINCT), "topic events is newly folded into distinct counts"),
    (counting("other", ("user_id",), aggregation("d", "stddev", "value", hop=HOUR)), "no room for sumsq_0, sumsq_1"),
    (counting("other", ("user_id",), *MANY, projection=PROJECTION), r"no room for count_2, count_3"),
    (counting("other", ("user_id", "item_id", "session_id")), "a view has more than 2 keys"),
])  # fmt: skip
def test_what_the_state_has_no_room_for_is_named_and_replayed(view, reason):
    start = started(after(PLAN), plan_of(OLD, view))
    assert start.action == "replay"
    assert reason in start.why


def test_another_topic_or_version_is_another_layout():
    layout = layout_of(PLAN)
    (topic,) = layout.topics
    other = topic.model_copy(update={"topic": "other"})
    assert why_not(layout, layout.model_copy(update={"topics": (topic, other)})) == "topic other is newly read"
    assert why_not(layout.model_copy(update={"topics": (other, topic)}), layout) == "topic other is no longer read"
    assert "another version" in why_not(layout.model_copy(update={"version": 0}), layout)


def test_an_operator_stays_though_the_last_view_that_it_folds_is_gone():
    lists = counting("lists", ("user_id",), aggregation("items", "last(3)", "item_id", hop=HOUR))
    start = started(after(plan_of(OLD, lists)), PLAN)
    assert start.action == "savepoint"
    statements = program_of(PLAN, Settings(), layout=start.lineage.layout).statements
    (fan_out,) = [text for text in statements if text.startswith("CREATE TEMPORARY VIEW `hw_last`")]
    assert "ARRAY[ROW(-1, CAST(NULL AS STRING)" in fan_out


def test_another_log_is_replayed():
    start = started(after(PLAN), PLAN, cluster="kafka-2")
    assert (start.action, start.why) == ("replay", "Kafka's log is another: kafka-2, and the checkpoint is of kafka-1")
    assert start.lineage.group != after(PLAN).group


def test_state_that_is_kept_elsewhere_is_replayed():
    start = decide(PLAN, Found(after(PLAN), CHECKPOINT, "kafka-1", None, "rocksdb"))
    assert (start.action, start.why) == ("replay", "state is kept in rocksdb, and the checkpoint's was in heap")
    assert start.lineage.state_backend == "rocksdb"


def test_a_view_that_was_removed_and_is_back_is_replayed():
    start = started(after(BOTH, PLAN), BOTH)
    assert (start.action, start.why.split(",")[0]) == ("replay", "other was removed and is back")


def test_events_that_were_too_late_and_no_longer_are_are_replayed():
    """Their ids are not in the state, so that a copy of one would count beside it."""
    short, long = counting("old", ttl=DAY), counting("other", ttl=9 * DAY)
    start = started(after(plan_of(short)), plan_of(short, long))
    assert (start.action, start.why.split(",")[0]) == (
        "replay", "events of topic events count that were too late before",
    )  # fmt: skip
    assert started(after(plan_of(short, long)), plan_of(short)).action == "savepoint"
    assert started(after(plan_of(short, long), plan_of(short)), plan_of(short, counting("x", ttl=DAY))).action == (
        "savepoint"
    )


def test_tiles_that_the_store_has_lost_are_replayed():
    kept, cuts = after(PLAN), {table: Cut(cluster="kafka-1") for table in tables(PLAN)}
    dropped = {table: cut.model_copy(update={"is_dropped": True}) for table, cut in cuts.items()}
    for lost in ({}, dropped):
        assert "the online store has lost tiles of old" in started(kept, PLAN, lost).why
    elsewhere = cuts | {table: Cut(cluster="kafka-1") for table in tables(BOTH, "other")}
    assert "other was folded before" in started(kept, BOTH, elsewhere).why
    assert started(kept, BOTH, cuts).action == "savepoint"


def test_the_plan_is_told_without_any_server_and_changes_nothing(tmp_path):
    settings = Settings(state_dir=tmp_path, kafka_port=free_port(), redis_port=free_port())
    start, cuts, told = next_start(PLAN, settings)
    assert (start.action, cuts, told["did_not_answer"]) == ("replay", {}, ["kafka", "online store"])
    assert told["records_to_replay"] is None
    assert not settings.checkpoints_dir.exists()


def test_a_lineage_of_an_older_version_is_none(settings):
    settings.checkpoints_dir.mkdir(parents=True)
    lineage.lineage_path(settings).write_text('{"statements": "abc", "cluster": "kafka-1", "group": "g"}')
    assert read_lineage(settings) is None
    assert Lineage.model_validate_json(after(PLAN).model_dump_json()).views == after(PLAN).views


@pytest.mark.integration
def test_a_topic_that_does_not_exist_is_named_before_the_job_starts(kafka, tmp_path):
    settings = Settings(state_dir=tmp_path, kafka=kafka)
    assert cluster_of(PLAN, settings) == describe(kafka).id
    elsewhere = PLAN.model_copy(update={"sources": (PLAN.sources[0].model_copy(update={"topic": "nowhere"}),)})
    with pytest.raises(UnavailableError, match=r"topic nowhere does not exist. Run `headwater up`"):
        cluster_of(elsewhere, settings)


def test_what_earlier_runs_left_is_deleted_once_a_run_has_its_own(settings):
    complete(settings, "run-a/chk-1", 100)
    ours = complete(settings, "run-b/chk-2", 200)
    drop_others(settings.checkpoints_dir, "run-b")
    assert list(settings.checkpoints_dir.glob("*/chk-*")) == [ours]
