"""What a run asks of Flink, by its settings."""

from pathlib import Path

import pytest

from headwater.settings import Settings
from streaming import job


@pytest.mark.parametrize(("partitions", "cores", "tasks"), [(2, 8, 2), (8, 2, 2), (1, 1, 1), (4, None, 1)])
def test_there_is_a_task_a_partition_but_none_beyond_the_cores(monkeypatch, partitions, cores, tasks):
    monkeypatch.setattr(job.os, "cpu_count", lambda: cores)
    assert job.parallelism(Settings(partitions=partitions)) == tasks


def test_state_on_the_heap_takes_the_checkpoint_over_and_rocksdb_only_reads_it(tmp_path):
    """RocksDB's next checkpoint would share files with the one taken over, whose folder is then deleted."""
    claims = {}
    for backend in ("heap", "rocksdb"):
        options = job.flink_options(Settings(state_dir=tmp_path, state_backend=backend), Path("/chk-1"), 8081)
        claims[options["state.backend.type"]] = options["execution.state-recovery.claim-mode"]
    assert claims == {"hashmap": "CLAIM", "rocksdb": "NO_CLAIM"}


def test_only_a_mini_cluster_gives_up_a_job_that_fails_again_and_again(tmp_path):
    """Its process ends, and whoever started it hears why; a cluster may be short of a machine for long."""
    attempts = "restart-strategy.exponential-delay.attempts-before-reset-backoff"
    assert job.flink_options(Settings(state_dir=tmp_path), None, 8081)[attempts] == "10"
    assert attempts not in job.cluster_options(Settings(state_dir=tmp_path))
