"""Ctrl-C while the demo runs, as a terminal sends it: to the whole process group."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from demo.conftest import PORTS, ROOT
from headwater.runtime.ports import free_port

INTERRUPTED = 130


@pytest.mark.integration
def test_the_next_demo_goes_on_where_one_was_interrupted(tmp_path):
    shutil.copytree(ROOT / "feature_repo", tmp_path / "repo", ignore=shutil.ignore_patterns("data", "__pycache__"))
    environment = {f"HEADWATER_{name}": str(free_port()) for name in PORTS} | {
        "HEADWATER_STATE_DIR": str(tmp_path / "state"),
        "HEADWATER_REPO": str(tmp_path / "repo"),
    }
    first = _interrupted(environment, "kafka: answers", tmp_path / "first.log")
    second = _interrupted(environment, "becomes history, replay and held-out test: ", tmp_path / "second.log")
    third = _interrupted(environment, "✓ Feature definitions", tmp_path / "third.log")
    assert "done before" not in first + second
    assert "held-out test (done before)" in third


def _interrupted(environment: Mapping[str, str], said: str, log: Path) -> str:
    """Run the demo until it has said something, interrupt it, and see that nothing of it is left."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headwater", "demo", "--small"], cwd=ROOT, env={**os.environ, **environment},
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background shell
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while said not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert said in log.read_text()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == INTERRUPTED, log.read_text()
    assert _alive(environment["HEADWATER_STATE_DIR"]) == []
    return log.read_text()


def _alive(state_dir: str) -> list[str]:
    """Name the processes that were started with this state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HEADWATER_STATE_DIR") == state_dir:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
