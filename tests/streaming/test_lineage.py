"""Which checkpoint a start goes on from."""

import os

import pytest
from support.definitions import HOUR, aggregation, plan_of, stream_view

from headwater.errors import UnavailableError
from headwater.kafka_io import describe
from headwater.settings import Settings
from streaming.job import cluster_of, drop_others, newest_checkpoint, settle_lineage

PLAN = plan_of(stream_view([aggregation("n", "count", hop=HOUR)]))
OTHER = plan_of(stream_view([aggregation("n", "count", hop=HOUR), aggregation("s", "sum", "value", hop=HOUR)]))


@pytest.fixture
def settings(tmp_path):
    return Settings(state_dir=tmp_path)


def complete(settings, name, at):
    metadata = settings.checkpoints_dir / name / "_metadata"
    metadata.parent.mkdir(parents=True)
    metadata.touch()
    os.utime(metadata, (at, at))
    return metadata.parent


def test_the_newest_complete_checkpoint_of_any_earlier_run_is_taken(settings):
    complete(settings, "run-b/chk-9", 100)
    newest = complete(settings, "run-a/chk-2", 200)
    (settings.checkpoints_dir / "run-a" / "chk-3").mkdir()  # torn: it has no metadata
    assert newest_checkpoint(settings.checkpoints_dir) == newest.resolve()


def test_a_first_start_has_no_checkpoint_and_a_group_of_its_own(settings):
    lineage, checkpoint = settle_lineage(PLAN, settings, "kafka-1")
    assert checkpoint is None
    assert lineage.group.startswith("headwater-test-")


def test_an_unchanged_plan_over_the_same_log_goes_on(settings):
    first, _ = settle_lineage(PLAN, settings, "kafka-1")
    kept = complete(settings, "run/chk-1", 100)
    assert settle_lineage(PLAN, settings, "kafka-1") == (first, kept.resolve())


@pytest.mark.parametrize(("plan", "cluster"), [(OTHER, "kafka-1"), (PLAN, "kafka-2")])
def test_another_plan_or_another_log_starts_afresh(settings, plan, cluster):
    first, _ = settle_lineage(PLAN, settings, "kafka-1")
    old = complete(settings, "run/chk-1", 100)
    lineage, checkpoint = settle_lineage(plan, settings, cluster)
    assert checkpoint is None
    assert lineage.group != first.group
    assert not old.exists()


@pytest.mark.integration
def test_a_topic_that_does_not_exist_is_named_before_the_job_starts(kafka, tmp_path):
    settings = Settings(state_dir=tmp_path, kafka=kafka)
    assert cluster_of(PLAN, settings) == describe(kafka).id
    elsewhere = PLAN.model_copy(update={"sources": (PLAN.sources[0].model_copy(update={"topic": "nowhere"}),)})
    with pytest.raises(UnavailableError, match=r"topic nowhere does not exist. Run `headwater up`"):
        cluster_of(elsewhere, settings)


def test_what_earlier_runs_left_is_deleted_once_a_run_has_its_own(settings):
    kept, _ = settle_lineage(PLAN, settings, "kafka-1")
    complete(settings, "run-a/chk-1", 100)
    ours = complete(settings, "run-b/chk-2", 200)
    drop_others(settings.checkpoints_dir, "run-b")
    assert list(settings.checkpoints_dir.glob("*/chk-*")) == [ours]
    assert settle_lineage(PLAN, settings, "kafka-1") == (kept, ours.resolve())
