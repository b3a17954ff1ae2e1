"""A folder appears whole or not at all, whatever moment its writer is killed at."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.archives import draw, write
from support.services import NOW

from batch import drafts
from batch.drafts import draft_beside, put_in_place
from batch.training_set import build_training_set, read_meta
from headwater.plan import FeaturePlan
from headwater.settings import Settings


def make(out: Path, text: str) -> None:
    with draft_beside(out) as draft:
        (draft / "rows").mkdir()
        (draft / "rows" / "file").write_text(text)
        put_in_place(draft / "rows", out)


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_new_folder_takes_the_place_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(drafts, "_exchanged", lambda left, right: False)
    for text in ("one", "two", "three"):
        make(tmp_path / "rows", text)
        assert (tmp_path / "rows" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["rows"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two renames stand in for the exchange")
def test_a_reader_finds_a_folder_at_every_moment(tmp_path: Path) -> None:
    """It is there while it is replaced: the two names are exchanged in one step."""
    out = tmp_path / "rows"
    make(out, "0")
    watcher = subprocess.Popen(
        [sys.executable, "-c", "import sys, pathlib\np = pathlib.Path(sys.argv[1])\nprint('up', flush=True)\n"
         "while not (p.parent / 'stop').exists():\n    (p / 'file').stat()", str(out)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert watcher.stdout is not None
    watcher.stdout.readline()
    for number in range(200):
        make(out, str(number))
    (tmp_path / "stop").touch()
    assert watcher.wait(60) == 0


def test_the_draft_of_a_living_run_is_left_alone_and_that_of_a_dead_one_removed(tmp_path: Path) -> None:
    out = tmp_path / "rows"
    dead = tmp_path / ".rows.dead.draft"
    dead.mkdir()
    other = tmp_path / ".rows2.dead.draft"
    other.mkdir()
    with draft_beside(out) as living, draft_beside(out) as second:
        assert living.exists()
        assert second != living
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name]


def test_a_folder_taken_away_by_a_run_killed_between_two_renames_comes_back(tmp_path: Path) -> None:
    """Only where the system cannot exchange two names."""
    out = tmp_path / "rows"
    make(out, "old")
    dead = tmp_path / ".rows.dead.draft"
    dead.mkdir()
    out.rename(dead / "replaced")
    with draft_beside(out):
        assert (out / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


HELD = """
import pathlib, time
import numpy as np

HELD = pathlib.Path({held!r})

def ratio(inputs):
    while HELD.exists():
        time.sleep(0.05)
    return {{"ratio": inputs["n_3h"], "hour": inputs["n_3h"]}}
"""
DOOMED = """
import sys
from pathlib import Path
from batch.session import spark_session
from batch.training_set import build_training_set
from headwater.plan import FeaturePlan
from headwater.settings import Settings

settings = Settings(state_dir=Path(sys.argv[1]), spark_heap_mb=512)
plan = FeaturePlan.read(Path(sys.argv[1]) / "plan.json")
labels = Path(sys.argv[1]) / "asked.parquet"
build_training_set(spark_session(settings), settings, plan, "all", labels, Path(sys.argv[2]))
"""


@pytest.mark.integration
@pytest.mark.parametrize("victim", ["the process", "its Spark"])
def test_killed_while_it_writes_it_leaves_the_old_set_and_the_next_run_is_right(
    spark: Any, plan: FeaturePlan, tmp_path: Path, victim: str
) -> None:
    settings, out = Settings(state_dir=tmp_path), tmp_path / "out" / "rows"
    write(draw(50, late=False), settings.events_dir)
    labels = pa.table({"user_id": ["1", "2"], "event_timestamp": [NOW, NOW]})
    first = build_training_set(spark, settings, plan, "all", labels, out)
    held = tmp_path / "held"
    held.touch()
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "offline_ratios.py").write_text(HELD.format(held=str(held)))
    plan.model_copy(update={"repo": str(repo)}).save(tmp_path / "plan.json")
    pq.write_table(pa.table({"user_id": ["3"], "event_timestamp": [NOW]}), tmp_path / "asked.parquet")
    log = (tmp_path / "log").open("w")
    root = Path(__file__).parents[2]
    doomed = subprocess.Popen(
        [sys.executable, "-c", DOOMED, str(tmp_path), str(out)], stderr=log, cwd=root, start_new_session=True
    )
    try:
        until(lambda: any(out.parent.glob(".rows.*.draft/rows/_temporary")), doomed, tmp_path / "log")
        children = psutil.Process(doomed.pid).children(recursive=True)
        java = next(child for child in children if "java" in child.name())
        os.kill(doomed.pid if victim == "the process" else java.pid, signal.SIGKILL)
        assert doomed.wait(60) != 0
        held.unlink()
        psutil.wait_procs(children, timeout=60)
        assert [child for child in children if child.is_running()] == []
    finally:
        held.unlink(missing_ok=True)
        if doomed.poll() is None:
            doomed.kill()
    assert read_meta(out) == first
    left = [path.name for path in out.parent.iterdir() if path.name != "rows"]
    assert bool(left) == (victim == "the process"), "only a process that could not clear up leaves a draft"
    again = build_training_set(spark, settings, plan, "all", labels.slice(1), out)
    assert (again.rows, read_meta(out)) == (1, again)
    assert [path.name for path in out.parent.iterdir()] == ["rows"]
    shutil.rmtree(repo)


def until(holds: Callable[[], bool], process: Any, log: Path) -> None:
    deadline = time.monotonic() + 180
    while not holds():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.05)
