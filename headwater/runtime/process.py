"""Child processes that outlive the command that started them, and are ended by pid, whole tree and session."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

CLOCK_SLACK_S = 2.0  # the system's estimate of a process's start moves a little when its clock is set

_started_here: dict[int, subprocess.Popen[bytes]] = {}  # kept so that an ended child is reaped


@dataclass(frozen=True, slots=True)
class Process:
    """A process that no other can be mistaken for: its pid and when it was created, epoch seconds."""

    pid: int
    create_time: float

    def is_alive(self) -> bool:
        return self._handle() is not None

    def rss_mb(self) -> int:
        """Resident memory of the whole tree, MiB."""
        total = 0
        for process in _tree([self]):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        return total >> 20

    def leads_session(self) -> bool:
        """Whether the session of this number is its own: the number is not given anew while a member lives."""
        try:
            return self._is_same(psutil.Process(self.pid))
        except psutil.NoSuchProcess:
            return True

    def _is_same(self, process: psutil.Process) -> bool:
        return bool(abs(process.create_time() - self.create_time) < CLOCK_SLACK_S)

    def _handle(self) -> psutil.Process | None:
        if (child := _started_here.get(self.pid)) is not None and child.poll() is not None:
            return None
        try:
            process = psutil.Process(self.pid)
            return process if self._is_same(process) and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def spawn(command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Start a process in a session of its own, with no terminal, appending what it says to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env={**_inherited(), **(env or {})},
        )  # fmt: skip
    _started_here[child.pid] = child
    try:
        created = psutil.Process(child.pid).create_time()
    except psutil.Error:
        created = 0.0  # it has ended already
    return Process(child.pid, created)


def _inherited() -> dict[str, str]:
    """This process's environment, without the folder of metrics that Feast's import names for this process alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_MULTIPROC")}


@contextmanager
def undivided() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is through, so that no child is started and then forgotten."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals never interrupt it
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    former = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def end(process: Process, patience_s: float = 40.0) -> None:
    """Ask a process to end, wait, then kill what is left of its tree and of its session."""
    family = _tree([process])
    if (leader := process._handle()) is not None:
        leader.terminate()
        _wait([leader], patience_s)
    left = [member for member in {*family, *_tree([process])} if member.is_running()]
    for member in left:
        _kill(member)
    _wait(left, 5.0)
    if (child := _started_here.pop(process.pid, None)) is not None:
        child.poll()


def last_lines(log: Path, count: int = 15) -> list[str]:
    """Return the end of a log."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64_000))
        return file.read().decode(errors="replace").splitlines()[-count:]


def _tree(leaders: Iterable[Process]) -> list[psutil.Process]:
    """The processes, their descendants, and whoever else is in the sessions they lead."""
    leaders = list(leaders)
    members: set[psutil.Process] = set()
    for leader in leaders:
        if (handle := leader._handle()) is not None:
            members |= {handle, *_descendants(handle)}
    sessions = {leader.pid for leader in leaders if leader.leads_session()}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions:
                members |= {process, *_descendants(process)}
        except (OSError, psutil.Error):
            continue
    return list(members)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return found


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


def _wait(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    psutil.wait_procs(processes, timeout=timeout_s)
