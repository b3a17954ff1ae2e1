"""State in RocksDB: found again after a kill, whatever of an earlier run's checkpoints has been deleted since."""

import pytest
from support.parts import Platform, draw, events_sent, until

from streaming import progress
from streaming.lineage import newest_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

EVENTS = events_sent(60_000)


@pytest.fixture
def platform(tmp_path):
    running = Platform(tmp_path, state_backend="rocksdb")
    running.start()
    yield running
    running.stop()


def test_each_run_goes_on_from_the_one_before_and_needs_nothing_that_only_older_runs_kept(platform):
    """Checkpoints share files within a run: a second kill would find out what the first run's folder still held."""
    sent, groups = [], set()
    for number in range(2):
        sent.append(draw(f"run{number}", EVENTS))
        before = platform.writes()
        platform.send(sent[-1])
        platform.in_the_middle(before, EVENTS // 20)
        until(lambda: newest_checkpoint(platform.settings.checkpoints_dir) is not None)
        earlier = newest_checkpoint(platform.settings.checkpoints_dir).parent
        platform.jvm().kill()
        until(lambda: not platform.part("stream").ready)
        until(lambda: platform.part("stream").last_log)  # its process has ended too
        platform.start()
        groups.add(progress.running_job(platform.settings).group)
        platform.catch_up()
        until(lambda earlier=earlier: not earlier.exists())
    assert len(groups) == 1  # state that begins anew has a group of its own
    for part in sent:
        platform.expect_exactly(part)
