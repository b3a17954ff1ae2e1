"""How many requests one process works on at once: the others wait, rather than all of them for the interpreter.

A request lets the interpreter go some tens of times, in compiled loops and while it asks the store. With eight at work
each has to wait behind seven then, on caches that these have filled, and takes twice the CPU. Two are enough for the
one to go on while the other waits for the store. Where more come than are answered, those that begin while many wait
have to hurry, since else all would wait until their callers had gone.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Any

from serving.guard import Deadline

AT_ONCE = 2
MOST_WAITING = 32
"""Calls for which there is no thread yet: those before them take about as long as a list may take."""


class Turns:
    """Shared by all funnels of a process."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = Semaphore(at_once)

    @contextmanager
    def turn(self, deadline: Deadline | None) -> Iterator[None]:
        """Wait for a turn, but at most half of the time that is left: those who have one may hang.

        Without a deadline nobody waits for the answer, and it does not wait either.
        """
        has_one = deadline is not None and self._free.acquire(timeout=deadline.share())
        try:
            yield
        finally:
            if has_one:
                self._free.release()


class Calls(ThreadPoolExecutor):
    """Threads that answer calls; ``waiting`` are those that have come and not begun."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="grpc")
        self._lock = Lock()
        self.waiting = 0

    @property
    def too_many(self) -> bool:
        """Whether a call that begins now should make way for those behind it."""
        return self.waiting > MOST_WAITING

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        with self._lock:
            self.waiting += 1
        return super().submit(self._answer, fn, *args, **kwargs)

    def _answer(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.waiting -= 1
        return fn(*args, **kwargs)
