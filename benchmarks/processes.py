"""A subject of a benchmark in a process of its own, and the CPU that it and all its children use."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import psutil

from headwater.errors import UnavailableError

MARK = "@"
LOOK_S = 0.5
"""Between two looks at the memory of a subject that has not answered yet."""


@dataclass(frozen=True, slots=True)
class Done:
    """CPU seconds and resident MiB at the most of the whole process group, and seconds by the clock.

    ``told`` is None where time ran out.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    told: Mapping[str, Any] | None


class Subject:
    """A started ``python -m MODULE ARGUMENTS`` that answers each line of JSON with one."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        began = time.monotonic()
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments], env=dict(environment), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip
        self._answers: Queue[dict[str, Any] | None] = Queue()
        Thread(target=self._listen, daemon=True).start()
        told = self._answer(300)
        if told is None:
            self.end()
            raise UnavailableError(f"bench: {module} {' '.join(arguments)} did not start within 300 s.")
        self.start = Done(self.cpu_s(), time.monotonic() - began, self._resident_mb(), told)

    def ask(self, question: Mapping[str, Any], limit_s: float) -> Done:
        """Send a question and wait for its answer; past the limit the subject is ended."""
        before, began = self.cpu_s(), time.monotonic()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        peak_mb, until = 0.0, began + limit_s
        while (told := self._answer(LOOK_S)) is None and time.monotonic() < until:
            peak_mb = max(peak_mb, self._resident_mb())
        done = Done(self.cpu_s() - before, time.monotonic() - began, max(peak_mb, self._resident_mb()), told)
        if told is None:
            self.end()
        return done

    def cpu_s(self) -> float:
        """CPU seconds used so far by the process, its children, and theirs, living or ended."""
        total = 0.0
        for one in self._group():
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def _resident_mb(self) -> float:
        total = 0
        for one in self._group():
            with suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total / 2**20

    def end(self) -> None:
        """End the process and all its children."""
        group = self._group()
        for one in group:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(group, timeout=30)
        self._process.wait(30)

    def _group(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _answer(self, limit_s: float) -> dict[str, Any] | None:
        try:
            told = self._answers.get(timeout=limit_s)
        except Empty:
            return None
        if told is None:
            raise UnavailableError(f"bench: a subject ended early: {self._log.read_text()[-800:]}")
        return told

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(json.loads(line[1:]))
        self._answers.put(None)
