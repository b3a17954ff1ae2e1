"""State in RocksDB: found again after a kill, whatever of earlier checkpoints is lost or has been deleted since."""

import shutil

import pytest
from support.parts import Platform, draw, events_sent, until

from headwater.errors import UnavailableError
from streaming import progress
from streaming.lineage import newest_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

EVENTS = events_sent(100_000)


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    running = Platform(tmp_path_factory.mktemp("platform"), state_backend="rocksdb")
    running.start()
    yield running
    running.stop()


def test_the_flink_jvm_is_killed_and_its_newest_checkpoint_is_corrupt(platform):
    """Its part ends and is named with its last lines; a start is refused by the checkpoint's name.

    Without that checkpoint the job goes on from an earlier one.
    """
    kept, group = platform.settings.checkpoints_dir, progress.running_job(platform.settings).group
    until(lambda: len(list(kept.glob("*/chk-*/_metadata"))) > 1)
    sent = platform.sent_and_begun(EVENTS, "jvm")
    orphans = platform.workers()
    platform.jvm().kill()
    until(lambda: not platform.part("stream").ready)
    until(lambda: platform.part("stream").last_log)
    assert "the JVM has ended" in platform.part("stream").last_log[-1]
    assert platform.status()["state"] == "STOPPED"
    assert not [worker for worker in orphans if worker.is_running()]
    newest = newest_checkpoint(kept)
    metadata = newest / "_metadata"
    metadata.write_bytes(metadata.read_bytes()[:-40])
    with pytest.raises(UnavailableError, match="stream: ended while starting") as refused:
        platform.start()
    assert str(newest) in str(refused.value)
    assert "remove its folder" in str(refused.value)
    shutil.rmtree(newest)
    platform.start()
    assert progress.running_job(platform.settings).group == group  # state that begins anew has a group of its own
    platform.catch_up()
    until(lambda: not newest.parent.exists())
    platform.expect_exactly(sent)


def test_a_run_needs_nothing_that_only_older_runs_kept(platform):
    """Checkpoints share files within a run: this second kill finds out what the first run's folder still held."""
    sent, group = platform.sent_and_begun(EVENTS, "again"), progress.running_job(platform.settings).group
    until(lambda: newest_checkpoint(platform.settings.checkpoints_dir) is not None)
    earlier = newest_checkpoint(platform.settings.checkpoints_dir).parent
    platform.jvm().kill()
    until(lambda: not platform.part("stream").ready)
    until(lambda: platform.part("stream").last_log)  # its process has ended too
    platform.start()
    assert progress.running_job(platform.settings).group == group
    platform.catch_up()
    until(lambda: not earlier.exists())
    platform.expect_exactly(sent)
    platform.expect_exactly(draw("jvm", EVENTS))
