"""``headwater up`` and ``down`` with the real broker and the real online store."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from headwater.errors import ConfigError, ResourceError, UnavailableError
from headwater.runtime import process, supervisor
from headwater.runtime.parts import has_champion
from headwater.runtime.ports import free_port, is_taken
from headwater.settings import Settings

pytestmark = pytest.mark.integration


def settings_in(folder: Path, **values: object) -> Settings:
    ports = {
        name: free_port() for name in ("kafka_port", "redis_port", "grpc_port", "metrics_port", "stream_metrics_port")
    }
    return Settings(**{"state_dir": folder, "kafka_heap_mb": 320, **ports, **values})


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != "zombie"}


def test_up_answers_and_a_second_up_is_harmless_and_down_leaves_no_orphan(tmp_path: Path) -> None:
    settings, before = settings_in(tmp_path), descendants()
    parts = supervisor.start(settings, ["kafka", "valkey"])
    assert [(part.name, part.ready) for part in parts] == [("kafka", True), ("valkey", True)]
    said: list[str] = []
    again = supervisor.start(settings, ["kafka", "valkey"], tell=said.append)
    assert [part.pid for part in again] == [part.pid for part in parts]
    assert said == [f"{part.name}: runs already, pid {part.pid}" for part in parts]
    with pytest.raises(ConfigError, match=r"kafka: runs at .* Run `headwater down` first"):
        supervisor.start(settings.model_copy(update={"kafka_port": free_port()}), ["kafka"])
    assert supervisor.stop(settings) == ["valkey", "kafka"]
    assert descendants() == before
    assert supervisor.status(settings) == []
    assert not is_taken(settings.host, settings.kafka_port)
    assert supervisor.stop(settings) == []


def test_a_part_that_crashed_is_named_with_its_last_words_and_started_anew(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    [part] = supervisor.start(settings, ["valkey"])
    try:
        os.kill(part.pid or 0, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(part.pid)] if psutil.pid_exists(part.pid or 0) else [], timeout=10)
        [crashed] = supervisor.status(settings)
        assert (crashed.name, crashed.ready) == ("valkey", False)
        assert "Ready to accept connections" in crashed.as_dict()["last_log"][-1]
        [anew] = supervisor.start(settings, ["valkey"])
        assert anew.ready
        assert anew.pid != part.pid
    finally:
        supervisor.stop(settings)


def test_a_part_that_was_ending_when_it_was_met_is_started_anew(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    [part] = supervisor.start(settings, ["valkey"])
    assert part.pid is not None
    ends = threading.Timer(1.0, os.kill, (part.pid, signal.SIGKILL))
    try:
        os.kill(part.pid, signal.SIGSTOP)  # alive, and answers nobody
        ends.start()
        [anew] = supervisor.start(settings, ["valkey"])
        assert anew.ready
        assert anew.pid != part.pid
    finally:
        ends.join()
        supervisor.stop(settings)


def test_a_part_that_dies_while_starting_is_told_with_its_log_and_nothing_is_left_running(tmp_path: Path) -> None:
    settings, before = settings_in(tmp_path), descendants()
    broken = tmp_path / "valkey" / "appendonlydir"
    broken.mkdir(parents=True)
    (broken / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(UnavailableError, match=r"valkey: ended while starting(.|\n)*AOF manifest"):
        supervisor.start(settings, ["valkey", "kafka"])
    assert descendants() == before
    assert supervisor.status(settings) == []


def test_ctrl_c_the_moment_a_part_exists_ends_that_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, before = settings_in(tmp_path), descendants()
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # an earlier test's Spark has one of its own

    def spawn(*arguments: Any) -> process.Process:
        started = process.spawn(*arguments)
        signal.raise_signal(signal.SIGINT)
        return started

    monkeypatch.setattr(supervisor, "spawn", spawn)
    try:
        with pytest.raises(KeyboardInterrupt):
            supervisor.start(settings, ["valkey"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert descendants() == before
    assert supervisor.recorded(settings) == []


def test_a_taken_port_is_refused_with_a_free_one_before_anything_starts(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with socket.socket() as squatter:
        squatter.bind((settings.host, settings.redis_port))
        squatter.listen()
        wanted = rf"valkey: port {settings.redis_port} is taken by .*{os.getpid()}.* HEADWATER_REDIS_PORT=\d+\.$"
        with pytest.raises(ResourceError, match=wanted):
            supervisor.start(settings, ["kafka", "valkey"])
    assert supervisor.status(settings) == []
    assert not (tmp_path / "kafka").exists()


def test_servers_named_in_the_settings_are_used_and_never_ended(tmp_path: Path, kafka: str, valkey: str) -> None:
    settings = settings_in(tmp_path, kafka=kafka, redis=valkey)
    parts = supervisor.start(settings, ["kafka", "valkey"])
    assert [(part.pid, part.address, part.ready) for part in parts] == [(None, kafka, True), (None, valkey, True)]
    assert supervisor.stop(settings) == []
    assert supervisor.part_is_ready(settings, "kafka")


def test_a_server_named_in_the_settings_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, redis=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(UnavailableError, match=r"does not answer.*Without HEADWATER_REDIS"):
        supervisor.start(settings, ["valkey"])


def test_a_pid_that_now_belongs_to_another_process_is_left_alone(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    other = process.spawn([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
    try:
        settings.run_dir.mkdir(parents=True)
        supervisor._save(settings, "valkey", supervisor.Record("valkey", other.pid, "", 0.0, other.create_time - 3600))
        [part] = supervisor.status(settings)
        assert not part.ready
        assert supervisor.stop(settings) == []
        assert psutil.Process(other.pid).is_running()
    finally:
        process.end(other)


def test_serving_waits_for_a_promoted_model(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert not has_champion(settings)
    with pytest.raises(UnavailableError, match="serve: cannot start, no model has been promoted"):
        supervisor.start(settings, ["serve"])
    settings.bundles_dir.mkdir(parents=True)
    (settings.bundles_dir / "aliases.json").write_text('{"champion": "1"}')
    assert has_champion(settings)


def test_the_stream_is_left_to_the_cluster_that_the_settings_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path).model_copy(update={"flink": "http://jobmanager:8081"})
    with pytest.raises(UnavailableError, match="stream: cannot start, the stream belongs on the Flink cluster at http"):
        supervisor.start(settings, ["stream"])


def test_an_unknown_part_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"postgres: not a part\. Choose from kafka"):
        supervisor.start(settings_in(tmp_path), ["postgres"])
