"""The same job on a standalone Flink cluster of three processes: equal tiles, also after a TaskManager is lost."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.flink_cluster import FlinkCluster
from support.parts import Platform, Sent, draw, until

from headwater.errors import ConfigError, UnavailableError
from headwater.runtime.parts import environment
from headwater.settings import Settings
from streaming import cluster, health, progress

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Clustered(Platform):
    """Broker and store as `headwater up` runs them; the job on a cluster, its checkpoints in a folder all share."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.flink = FlinkCluster(folder / "flink")
        self.shared = folder / "shared"
        told = {"flink": self.flink.rest, "checkpoints": self.shared.as_uri()}
        self.settings = self.settings.model_copy(update=told)

    def headwater(self, *words: str) -> Any:
        """What a command prints as JSON."""
        command = [sys.executable, "-m", "headwater", *words, "--json"]
        told = {**os.environ, **environment(self.settings)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=told)
        assert not done.returncode, done.stdout + done.stderr
        return json.loads(done.stdout)

    def runs_again(self) -> bool:
        self.flink.supervise()
        return bool(self.status()["state"] == "RUNNING")

    def told(self) -> str:
        """How the job is, and what its servers said last."""
        return f"{self.status()}\n{self.flink.told()}"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    running = Clustered(tmp_path_factory.mktemp("clustered"))
    try:
        running.start("kafka", "valkey")
        running.flink.start(task_managers=2)
        until(lambda: running.flink.task_managers() == 2)
        yield running
    finally:
        running.flink.end()
        running.stop()


@pytest.fixture(scope="module")
def first(platform: Clustered) -> Sent:
    """Events folded by the job as submitted."""
    told = platform.headwater("stream", "submit", "--parallelism", "2")
    assert told["submitted"]
    sent = draw("first", 4_000)
    platform.send(sent)
    assert platform.headwater("stream", "wait", "--timeout", "240")["caught_up"]
    return sent


def test_every_tile_is_what_python_folds_of_what_was_sent(platform: Clustered, first: Sent) -> None:
    """Disorder, copies, poison; the two slots lie in two TaskManagers, the checkpoints where they were told to."""
    platform.expect_exactly(first)
    told = platform.headwater("stream", "status")
    assert (told["state"], told["task_managers"], told["restarts"], told["lag"]) == ("RUNNING", 2, 0, 0)
    assert told["tasks"] == told["tasks_running"] > 0
    assert list(platform.shared.glob(f"{told['job_id']}/chk-*/_metadata"))


def test_a_job_that_runs_there_already_is_not_submitted_again(platform: Clustered, first: Sent) -> None:
    before = platform.status()["job_id"]
    assert platform.headwater("stream", "submit") == {"job_id": before, "submitted": False}
    with pytest.raises(ConfigError, match="from other definitions"):
        cluster.submit(platform.settings, platform.plan.project, ["SELECT 1"])


def test_a_task_manager_is_killed_in_the_middle(platform: Clustered, first: Sent) -> None:
    """Another that joins takes its slot, and the job goes on from its checkpoint by itself."""
    sent, before = draw("second", 10_000), platform.writes()
    platform.send(sent)
    platform.in_the_middle(before, 200)
    platform.flink.kill_task_manager()
    until(lambda: platform.status()["state"] != "RUNNING", told=platform.told)
    platform.flink.start_task_manager()
    until(platform.runs_again, 300, platform.told)
    until(lambda: platform.status()["restarts"] >= 1)  # a metric, which Flink fetches now and then
    assert progress.wait_until_caught_up(platform.settings, 240)
    platform.expect_exactly(sent)
    platform.expect_exactly(first)


def test_a_job_stopped_with_a_savepoint_goes_on_from_it(platform: Clustered, first: Sent) -> None:
    """It reads no record again: what was written before is not written a second time."""
    rest, job = platform.flink.rest, platform.status()["job_id"]
    told = health.get(f"{rest}/jobs/{job}/stop", {"targetDirectory": platform.shared.as_uri(), "drain": False})
    request = f"{rest}/jobs/{job}/savepoints/{told['request-id']}"
    until(lambda: health.get(request)["status"]["id"] == "COMPLETED")
    done, before = health.get(request)["operation"], platform.writes()
    assert "location" in done, f"{done}\n{platform.told()}"
    savepoint = done["location"]
    assert platform.headwater("stream", "submit", "--parallelism", "2", "--from", savepoint)["job_id"] != job
    sent = draw("third", 1_000)
    platform.send(sent)
    assert progress.wait_until_caught_up(platform.settings, 240)
    platform.expect_exactly(sent)
    platform.expect_exactly(first)
    assert platform.writes() - before < 3 * len(sent.records)


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    away = Settings(state_dir=tmp_path, flink="http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=":9: does not answer"):
        cluster.submit(away, "shop", [])
    with pytest.raises(UnavailableError, match="HEADWATER_FLINK"):
        progress.current_job(away, "shop")
    with pytest.raises(ConfigError, match="no cluster is named"):
        cluster.submit(Settings(state_dir=tmp_path), "shop", [])


def test_a_cluster_without_task_managers_is_told(tmp_path: Path) -> None:
    alone = FlinkCluster(tmp_path)
    alone.start(task_managers=0)
    try:
        until(lambda: bool(_answers(alone)))
        with pytest.raises(UnavailableError, match="has no TaskManager"):
            cluster.submit(Settings(state_dir=tmp_path, flink=alone.rest), "shop", [])
        assert cluster.newest_job(alone.rest, "shop") is None
    finally:
        alone.end()


def _answers(flink: FlinkCluster) -> bool:
    try:
        return "taskmanagers" in health.get(f"{flink.rest}/overview")
    except OSError:
        return False
