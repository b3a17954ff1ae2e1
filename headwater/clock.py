"""The one clock. No part reads the wall clock for meaning: a year can be replayed in minutes."""

import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from headwater.errors import UnavailableError

CLOCK_KEY = b"hw1:clock"
REFRESH_S = 0.2


class Clock(Protocol):
    """Anything that tells the platform's time."""

    def now_ms(self) -> int:
        """Epoch milliseconds, UTC."""
        ...


def wall_ms() -> int:
    """Read the machine's time; only clocks, timeouts and garbage collection may."""
    return time.time_ns() // 1_000_000


class SystemClock:
    """Live: the wall clock."""

    def now_ms(self) -> int:
        return wall_ms()


@dataclass
class ManualClock:
    """Test: stands still until moved."""

    at_ms: int

    def now_ms(self) -> int:
        return self.at_ms

    def set(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def advance(self, by_ms: int) -> None:
        self.at_ms += by_ms


@dataclass(frozen=True, slots=True)
class Anchor:
    """At wall time ``wall_ms`` the clock showed ``clock_ms``; since then it runs at ``speed``."""

    wall_ms: int
    clock_ms: int
    speed: float

    def at(self, wall: int) -> int:
        return self.clock_ms + int((wall - self.wall_ms) * self.speed)

    def encode(self) -> bytes:
        return f"{self.wall_ms} {self.clock_ms} {self.speed!r}".encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Anchor":
        wall, clock, speed = raw.split()
        return cls(int(wall), int(clock), float(speed))


class StoredClock:
    """Shared by all processes: anchored in the online store, the wall clock where no anchor is set.

    An unreachable store leaves the last anchor seen in force. While one thread reads the anchor the others wait for it:
    what is held may be older than ``REFRESH_S`` by as long as nobody has asked.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._anchor: Anchor | None = None
        self._read_at = float("-inf")
        self._reading = threading.Lock()

    def now_ms(self) -> int:
        if self._is_old():
            with self._reading:
                if self._is_old():
                    self._refresh()
        wall = wall_ms()
        return wall if self._anchor is None else self._anchor.at(wall)

    def set(self, now_ms: int, speed: float = 1.0) -> None:
        """Move the platform's time for every process that shares the store."""
        with self._reading:
            anchor = Anchor(wall_ms(), now_ms, speed)
            self._redis.set(CLOCK_KEY, anchor.encode())
            self._anchor, self._read_at = anchor, time.monotonic()

    def clear(self) -> None:
        """Go back to the wall clock."""
        with self._reading:
            self._redis.delete(CLOCK_KEY)
            self._anchor = None

    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at > REFRESH_S

    def _refresh(self) -> None:
        began = time.monotonic()
        try:
            raw = self._redis.get(CLOCK_KEY)
            self._anchor = Anchor.decode(raw) if raw else None
        except (OSError, UnavailableError):
            pass
        except Exception as error:
            if type(error).__module__.split(".")[0] != "redis":
                raise
        finally:
            self._read_at = began
