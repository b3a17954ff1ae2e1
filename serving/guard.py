"""Parts that may keep a request waiting: asked within the request's time or not at all, most in threads of their own.

A part that fails or is late is not asked for a pause, which doubles from 0.1 s to 2 s while it stays away. Then one
call is made for which nobody waits, and if that ends well the part is asked again (a circuit breaker: Nygard, *Release
It!*, 2007).
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from headwater.errors import UnavailableError
from headwater.online.connect import UnreadyError, within

T = TypeVar("T")
PAUSE_S, MOST_PAUSE_S = 0.1, 2.0
FAIR_S = 0.025
"""A call that is late after less says nothing of the part: its caller was in a hurry."""
MOST_CALLS = 32
IDLE_S = 60.0
_GONE = (UnavailableError, OSError)


class LateError(UnavailableError):
    """A part did not answer in the time that there was."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant of ``time.monotonic``, seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds, not negative."""
        return max(0.0, self.at - time.monotonic())

    def share(self) -> float:
        """What one part may take, seconds: half, so that there is always as much for what comes after it."""
        return min(self.left() / 2, threading.TIMEOUT_MAX)


class Guard:
    """One part's breaker and threads; a thread that nobody needs for a minute ends."""

    def __init__(self, part: str, most: int = MOST_CALLS) -> None:
        self.part = part
        self._most = most
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._threads = self._idle = 0
        self._failures = 0
        self._again_at = 0.0
        self._probing = False
        self._fair_s = math.inf
        self._why = ""

    def ask(self, work: Callable[[], T], deadline: Deadline | None, here: bool = False) -> T:
        """Do the work in at most half of the time that is left; here and now where there is no deadline.

        Parameters
        ----------
        here
            The work asks the online store and nothing else, and can be done again: while the store is well it is done
            in the caller's thread, for as long as :func:`headwater.online.connect.within` lets it.

        Raises
        ------
        LateError
            It did not end in time.
        UnavailableError
            The part is known to be away, so it was not asked; or what the work raises.
        """
        if deadline is None:
            return work()
        if here and not self._failures:
            with suppress(UnreadyError):
                return self._done_here(work, deadline.share())
        return self.start(work).result(deadline)

    def _done_here(self, work: Callable[[], T], patience_s: float) -> T:
        began = time.monotonic()
        try:
            with within(patience_s):
                return work()
        except _GONE as error:
            if (waited_s := time.monotonic() - began) >= patience_s:
                raise self.late(waited_s) from error
            with self._lock:
                self._trip(str(error))
            raise

    def start(self, work: Callable[[], T]) -> "Asked[T]":
        """Begin the work, whose result is asked for later.

        Raises
        ------
        UnavailableError
            As :meth:`ask`.
        """
        call = _Call(work)
        with self._lock:
            if not self._failures:
                self._give(call)
                return Asked(self, call)
            if not self._probing and time.monotonic() >= self._again_at:
                self._probing = call.is_probe = True
                self._give(call)
        raise UnavailableError(f"{self.part}: away, {self._why}. It is asked again within {MOST_PAUSE_S:.0f} s.")

    def late(self, waited_s: float) -> LateError:
        """Note that nobody waits for a call any more."""
        if waited_s >= FAIR_S:
            with self._lock:
                self._trip(f"no answer in {waited_s * 1000:.0f} ms", fair_s=waited_s)
        return LateError(f"{self.part}: no answer in {waited_s * 1000:.0f} ms. The request went on without it.")

    def _give(self, call: "_Call") -> None:
        """Hand a call to a thread that has none, or to a new one."""
        if self._idle:
            self._idle -= 1
            self._calls.put(call)
        elif self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._work, args=(call,), name=f"guard {self.part}", daemon=True).start()
        else:
            self._probing = False
            raise LateError(f"{self.part}: {self._most} calls wait for it already. The request went on without it.")

    def _work(self, call: "_Call") -> None:
        while True:
            call.run()
            with self._lock:
                self._ended(call)
                self._idle += 1
            call.tell()
            try:
                call = self._calls.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if self._idle:
                        self._idle -= 1
                        self._threads -= 1
                        return
                call = self._calls.get()  # it has been promised one meanwhile

    def _ended(self, call: "_Call") -> None:
        if call.is_probe:
            self._probing = False
        if isinstance(call.error, _GONE):
            self._trip(str(call.error), again=call.is_probe)
        elif self._failures and call.seconds <= self._fair_s:
            self._failures = 0
        elif self._failures:  # it has come back, if slowly: a probe will tell
            self._again_at = time.monotonic() + (PAUSE_S if call.is_probe else 0.0)

    def _trip(self, why: str, again: bool = False, fair_s: float = math.inf) -> None:
        """Leave the part alone for a pause; calls that were on their way when it went say nothing new."""
        if self._failures and not again:
            return
        if not again:
            self._fair_s = fair_s
        self._why = why.rstrip(".")
        self._again_at = time.monotonic() + min(MOST_PAUSE_S, PAUSE_S * 2.0 ** min(self._failures, 10))
        self._failures += 1


class Asked(Generic[T]):
    """A call on its way."""

    def __init__(self, guard: Guard, call: "_Call") -> None:
        self._guard, self._call = guard, call

    def result(self, deadline: Deadline) -> T:
        """Wait for it, as :meth:`Guard.ask` does."""
        patience = deadline.share()
        try:
            found: T = self._call.future.result(patience)
        except TimeoutError:
            if self._call.future.done():  # its own
                raise
            raise self._guard.late(patience) from None
        return found


class _Call:
    """Work, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self.is_probe = False
        self.error: BaseException | None = None
        self.seconds = 0.0
        self._work = work
        self._found: Any = None

    def run(self) -> None:
        started = time.monotonic()
        try:
            self._found = self._work()
        except BaseException as error:
            self.error = error
        self.seconds = time.monotonic() - started

    def tell(self) -> None:
        """Wake who waits, once the breaker knows."""
        if self.error is None:
            self.future.set_result(self._found)
        else:
            self.future.set_exception(self.error)
