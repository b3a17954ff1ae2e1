"""Processes that share a folder prepare bundles in turn; threads stand in for them, as a lock is of an open file."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from serving import patience
from serving.patience import in_turn

WAIT_S = 10.0


def test_one_prepares_while_another_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    began, order = Event(), []

    def second() -> None:
        began.set()
        with in_turn(tmp_path):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with in_turn(tmp_path):
            other = pool.submit(second)
            assert began.wait(WAIT_S)
            order.append("first")
        other.result(WAIT_S)
    assert order == ["first", "second"]


def test_one_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(patience, "MOST_WAIT_S", 0.05)
    with in_turn(tmp_path), in_turn(tmp_path):
        pass


def test_without_a_folder_nobody_waits() -> None:
    with in_turn(None), in_turn(None):
        pass
