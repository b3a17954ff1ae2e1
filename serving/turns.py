"""How many requests one process works on at once: the others wait, rather than all of them for the interpreter.

A request lets the interpreter go some tens of times, in compiled loops and while it asks the store. With eight at work
each has to wait behind seven then, on caches that these have filled, and takes twice the CPU. Two are enough for the
one to go on while the other waits for the store.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore

from serving.guard import Deadline

AT_ONCE = 2


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
