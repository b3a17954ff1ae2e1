"""One demo of 200 households, with a state folder, a repository and ports of its own, that these tests share.

It is interrupted three times before it is let through, as someone does who has it run for the first time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from headwater.runtime.ports import free_port

ROOT = Path(__file__).parents[2]
PORTS = ("KAFKA_PORT", "REDIS_PORT", "GRPC_PORT", "METRICS_PORT", "STREAM_METRICS_PORT")
LONGEST_S = 540


@dataclass(frozen=True)
class DemoState:
    """What a finished demo left behind, and what it told."""

    environment: Mapping[str, str]
    told: Mapping[str, Any]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the platform on this state."""
        return headwater(self.environment, *arguments)


def headwater(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "ignore", "-m", "headwater", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=LONGEST_S,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Interrupted:
    """What was told until Ctrl-C, with which status each ended, and which of its processes were left, by each try."""

    environment: Mapping[str, str]
    told: tuple[str, ...]
    statuses: tuple[int, ...]
    left: tuple[str, ...]


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """``headwater demo --small`` on a copied repository, since ``feast apply`` writes its registry into it."""
    home = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "feature_repo", home / "feature_repo", ignore=shutil.ignore_patterns("data", "__pycache__"))
    environment = {f"HEADWATER_{name}": str(free_port()) for name in PORTS} | {
        "HEADWATER_STATE_DIR": str(home / "state"),
        "HEADWATER_REPO": str(home / "feature_repo"),
    }
    told, statuses, left = [], [], []
    for number, said in enumerate(("kafka: answers", "becomes history, replay and held-out test: ", "✓ Feature def")):
        log = home / f"interrupted{number}.log"
        statuses.append(_interrupt(environment, said, log))
        told.append(log.read_text())
        left += _alive(environment["HEADWATER_STATE_DIR"])
    return Interrupted(environment, tuple(told), tuple(statuses), tuple(left))


@pytest.fixture(scope="session")
def demo_state(interrupted: Interrupted) -> DemoState:
    """``headwater demo --small``, let through."""
    done = headwater(interrupted.environment, "demo", "--small", "--json")
    assert done.returncode == 0, done.stderr[-6000:]
    return DemoState(interrupted.environment, json.loads(done.stdout))


@pytest.fixture(scope="package")
def platform(demo_state: DemoState) -> Iterator[DemoState]:
    """The demo's state, served again."""
    up = demo_state.run("up", "--json")
    try:
        assert up.returncode == 0, up.stderr[-6000:]
        yield demo_state
    finally:
        down = demo_state.run("down", "--json")
    assert down.returncode == 0, down.stderr[-2000:]


def _interrupt(environment: Mapping[str, str], said: str, log: Path) -> int:
    """Run the demo until it has said something, and interrupt it as a terminal does: the whole process group."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headwater", "demo", "--small"], cwd=ROOT, env={**os.environ, **environment},
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background shell
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while said not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert said in log.read_text(), log.read_text()
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(60)


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
