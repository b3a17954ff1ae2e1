"""What each part costs while the demo runs: resident memory and CPU time of its whole process tree."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping

import psutil

SAMPLE_S = 0.5
MIB = 1024 * 1024


class Meter:
    """Samples the process trees of the platform's parts and of the commands that run now.

    Memory is the sum of resident sets, which counts pages that processes share once for each: an upper bound.
    """

    def __init__(self, parts: Callable[[], Mapping[str, int]]) -> None:
        self._parts = parts
        self._commands: dict[str, int] = {}
        self._peaks: dict[str, float] = {}
        self._cpu: dict[tuple[str, int], float] = {}
        self._peak = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    @contextlib.contextmanager
    def command(self, name: str, pid: int) -> Iterator[None]:
        """Book a process and its children under ``name`` meanwhile."""
        self._commands[name] = pid
        try:
            yield
        finally:
            self._commands.pop(name)

    @property
    def peak_rss_mb(self) -> float:
        """Most that everything together held at one sample."""
        return round(self._peak, 1)

    @property
    def peaks_mb(self) -> dict[str, float]:
        """Most that each part or command held."""
        return {name: round(value, 1) for name, value in self._peaks.items()}

    @property
    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each part or command, of processes that lived for at least one sample."""
        totals: dict[str, float] = {}
        for (name, _), seconds in self._cpu.items():
            totals[name] = totals.get(name, 0.0) + seconds
        return {name: round(seconds, 1) for name, seconds in totals.items()}

    def sample(self) -> None:
        """Take one sample now."""
        with self._lock:
            held = {"demo": self._measure("demo", psutil.Process(os.getpid()))}
            for name, pid in (*self._parts().items(), *list(self._commands.items())):
                held[name] = self._tree(name, pid)
            for name, size in held.items():
                self._peaks[name] = max(size, self._peaks.get(name, 0.0))
            self._peak = max(self._peak, sum(held.values()))

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.sample()

    def _tree(self, name: str, pid: int) -> float:
        try:
            root = psutil.Process(pid)
            members = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0.0
        return sum(self._measure(name, member) for member in members)

    def _measure(self, name: str, member: psutil.Process) -> float:
        try:
            with member.oneshot():
                times = member.cpu_times()
                self._cpu[name, member.pid] = times.user + times.system
                return float(member.memory_info().rss) / MIB
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0.0
