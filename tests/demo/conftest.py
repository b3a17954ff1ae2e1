"""One demo of 200 households, with a state folder, a repository and ports of its own, that these tests share."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def demo_state(tmp_path_factory: pytest.TempPathFactory) -> DemoState:
    """``headwater demo --small``; the repository is copied, since ``feast apply`` writes its registry into it."""
    home = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "feature_repo", home / "feature_repo", ignore=shutil.ignore_patterns("data", "__pycache__"))
    environment = {f"HEADWATER_{name}": str(free_port()) for name in PORTS} | {
        "HEADWATER_STATE_DIR": str(home / "state"),
        "HEADWATER_REPO": str(home / "feature_repo"),
    }
    done = headwater(environment, "demo", "--small", "--json")
    assert done.returncode == 0, done.stderr[-6000:]
    return DemoState(environment, json.loads(done.stdout))


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
