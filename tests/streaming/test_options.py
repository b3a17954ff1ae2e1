"""What a run asks of Flink, by its settings."""

from pathlib import Path

import pytest
from support.definitions import HOUR, aggregation, plan_of, stream_view

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


def test_another_state_backend_starts_from_the_first_event(tmp_path):
    """Neither reads the other's checkpoints."""
    plan = plan_of(stream_view([aggregation("n", "count", hop=HOUR)]))
    on_heap, on_disk = (Settings(state_dir=tmp_path, state_backend=backend) for backend in ("heap", "rocksdb"))
    first, _ = job.settle_lineage(plan, on_heap, "kafka-1")
    kept = on_heap.checkpoints_dir / "run" / "chk-1"
    kept.mkdir(parents=True)
    (kept / "_metadata").touch()
    assert job.settle_lineage(plan, on_heap, "kafka-1") == (first, kept.resolve())
    lineage, checkpoint = job.settle_lineage(plan, on_disk, "kafka-1")
    assert checkpoint is None
    assert lineage.group != first.group
