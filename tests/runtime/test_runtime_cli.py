"""The commands ``up``, ``down``, ``status`` and ``doctor``, as a person or a script types them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headwater.runtime.ports import free_port, is_taken

ENTRY = """
import sys, typer
from headwater.errors import HeadwaterError
from headwater.runtime import cli
app = typer.Typer(pretty_exceptions_enable=False)
for command in (cli.up, cli.down, cli.status, cli.doctor):
    app.command()(command)
try:
    app()
except HeadwaterError as error:
    sys.exit(str(error))
"""  # the runtime's commands alone, so that other rooms cannot break or slow them


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    ports = {f"HEADWATER_{name}_PORT": str(free_port()) for name in ("KAFKA", "REDIS", "GRPC", "METRICS")}
    return {**os.environ, **ports, "HEADWATER_STATE_DIR": str(tmp_path), "HEADWATER_KAFKA_HEAP_MB": "320"}


def headwater(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENTRY, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def parts_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    parts: list[dict[str, Any]] = json.loads(done.stdout)["parts"]
    return parts


@pytest.mark.integration
def test_a_script_reads_one_json_object_from_each_command(environment: dict[str, str]) -> None:
    assert parts_of(headwater(environment, "status", "--json")) == []
    [started] = parts_of(headwater(environment, "up", "--only", "valkey", "--json"))
    try:
        [seen] = parts_of(headwater(environment, "status", "--json"))
        assert started == seen
        assert seen.keys() == {"name", "pid", "address", "ready", "rss_mb"}
        assert psutil.Process(seen["pid"]).name() == "valkey-server"
        examined = json.loads(headwater(environment, "doctor", "--json").stdout)
        found = {check["name"]: check for check in examined["checks"]}
        assert found["redis_port"]["found"].endswith("valkey runs there")
    finally:
        ended = headwater(environment, "down", "--json")
    assert json.loads(ended.stdout) == {"ended": ["valkey"]}


@pytest.mark.integration
def test_ctrl_c_while_starting_leaves_nothing_running(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENTRY, "up", "--only", "kafka,valkey"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background shell
    ) as starting:  # fmt: skip
        deadline = time.monotonic() + 60
        while not (tmp_path / "logs" / "valkey.log").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        starting.send_signal(signal.SIGINT)
        starting.communicate(timeout=60)
    assert starting.returncode != 0
    assert json.loads((tmp_path / "run" / "parts.json").read_text()) == []
    assert not is_taken("127.0.0.1", int(environment["HEADWATER_REDIS_PORT"]))


def test_doctor_says_how_to_mend_a_taken_port_and_exits_1(environment: dict[str, str]) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", int(environment["HEADWATER_GRPC_PORT"])))
        squatter.listen()
        done = headwater(environment, "doctor", "--json")
    assert done.returncode == 1
    [bad] = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "grpc_port"]
    assert not bad["ok"]
    assert "is taken by" in bad["found"]
    assert "HEADWATER_GRPC_PORT=" in bad["mend"]


def test_an_unknown_part_is_one_sentence_on_stderr(environment: dict[str, str]) -> None:
    done = headwater(environment, "up", "--only", "oracle")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "oracle: not a part. Choose from kafka, valkey, stream, archive, serve.\n"


@pytest.mark.parametrize("command", ["up", "down", "status", "doctor"])
def test_help_opens_with_an_example(environment: dict[str, str], command: str) -> None:
    assert f"Example: headwater {command}" in headwater(environment, command, "--help").stdout
