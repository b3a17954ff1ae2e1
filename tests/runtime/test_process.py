"""Processes that outlive their starter are ended to the last grandchild."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from headwater.runtime import process
from headwater.runtime.ready import is_marked, mark_ready, ready_path
from headwater.settings import Settings

# one write for a line, which an unbuffered `print` does in two: another's word can come between them
STUBBORN = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'deaf\\n'); time.sleep(600)"
)
FAMILY = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}])
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True)
time.sleep(600)
"""
ORPHANS = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def says(log: Path, word: str, times: int) -> Callable[[], bool]:
    return lambda: process.last_lines(log).count(word) == times


def still_there(family: list[psutil.Process]) -> list[psutil.Process]:
    return [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]


def test_ending_a_process_ends_children_that_ignore_the_signal_or_left_the_session(tmp_path: Path) -> None:
    started = process.spawn([sys.executable, "-c", FAMILY], tmp_path / "log")
    wait_for(says(tmp_path / "log", "deaf", 2))
    family = psutil.Process(started.pid).children(recursive=True)
    assert len(family) == 2
    process.end(started, patience_s=5)
    assert not started.is_alive()
    assert still_there(family) == []


def test_children_of_a_process_that_has_already_died_are_ended_too(tmp_path: Path) -> None:
    started = process.spawn([sys.executable, "-c", ORPHANS], tmp_path / "log")
    wait_for(lambda: not started.is_alive())
    wait_for(says(tmp_path / "log", "deaf", 1))
    family = [found for found in psutil.process_iter() if _session(found.pid) == started.pid]
    assert len(still_there(family)) == 1
    process.end(started)
    wait_for(lambda: still_there(family) == [])


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def test_a_process_that_cannot_start_its_work_leaves_its_words_in_the_log(tmp_path: Path) -> None:
    started = process.spawn([sys.executable, "-c", "raise SystemExit('out of luck')"], tmp_path / "log")
    wait_for(lambda: not started.is_alive())
    process.end(started)
    assert process.last_lines(tmp_path / "log") == ["out of luck"]


def test_a_process_does_not_share_its_metrics_with_the_one_that_imported_feast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")
    for name in names:
        monkeypatch.setenv(name, str(tmp_path))
    told = f"import os; print([os.environ.get(name) for name in {names}], os.environ['OWN'])"
    started = process.spawn([sys.executable, "-c", told], tmp_path / "log", {"OWN": "kept"})
    wait_for(lambda: not started.is_alive())
    process.end(started)
    assert process.last_lines(tmp_path / "log") == ["[None, None] kept"]


@pytest.mark.parametrize("content", ["", "not json", '{"pid": 1}', "[]"])
def test_a_readiness_file_counts_only_for_the_process_that_wrote_it(tmp_path: Path, content: str) -> None:
    settings = Settings(state_dir=tmp_path)
    mark_ready(settings, "stream", job="running")
    assert is_marked(settings, "stream", os.getpid())
    ready_path(settings, "stream").write_text(content)
    assert not is_marked(settings, "stream", os.getpid())
