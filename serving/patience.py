"""Preparing a bundle beside requests: in a thread that gives way to theirs, and by some of the processes at a time."""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 10
"""Of a thread that prepares a bundle (nice): it has a tenth of a core that others want, rather than a half."""
SWITCH_S = 0.0005
"""How long it keeps the interpreter from a request's thread, which asks for it some tens of times."""
_ONE = threading.Lock()
"""At a time does so: another would take the short interval for the one to go back to."""
MOST_WAIT_S, LOOK_S = 10.0, 0.02
"""For a turn; and between two looks whether it has come."""


def patiently(work: Callable[[], T]) -> T:
    """Do something in a thread of its own that leaves a core to others who want it: requests are answered meanwhile."""

    def give_way() -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PATIENCE)

    with _ONE:
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            with ThreadPoolExecutor(1, "patient", give_way) as pool:
                return pool.submit(work).result()
        finally:
            sys.setswitchinterval(before)


@contextmanager
def in_turn(folder: Path | None) -> Iterator[None]:
    """Have as many processes of those that share a folder prepare a bundle as leave every second core to requests.

    One that has waited for ``MOST_WAIT_S`` goes on all the same, as the one before it may hang.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + MOST_WAIT_S
    place = os.getpid() % max(1, (os.cpu_count() or 1) // 2)
    with (folder / f"preparing.{place}.lock").open("w") as lock:
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOOK_S)
        yield
