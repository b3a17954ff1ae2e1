"""Items that may not be shown now: a set in the online store, read at most once a second."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import redis

from headwater.errors import UnavailableError
from headwater.online.connect import unavailable
from headwater.online.keys import project_prefix
from serving.guard import Deadline, Guard
from serving.ports import Ints, Numbering

REFRESH_S = 1.0


def key_of(project: str) -> str:
    """Where the set lies; not among the project's entities."""
    return "hw1-unavailable:" + project_prefix(project).decode()


def withdraw(store: redis.Redis, project: str, item_ids: Iterable[str]) -> None:
    """Stop showing items, on every server, within a second."""
    ids = list(item_ids)
    if ids:
        store.sadd(key_of(project), *ids)


def restore(store: redis.Redis, project: str, item_ids: Iterable[str]) -> None:
    """Show them again."""
    ids = list(item_ids)
    if ids:
        store.srem(key_of(project), *ids)


class StoredAvailability:
    """Knows the set as dense numbers; while the store is down, as it last was."""

    def __init__(self, store: redis.Redis, project: str, items: Numbering, guard: Guard) -> None:
        self._store = store
        self._guard = guard
        self._key = key_of(project)
        self._items = items
        self._held: Ints = np.empty(0, np.int32)
        self._read_at = float("-inf")

    def unavailable(self, deadline: Deadline | None = None) -> Ints:
        if time.monotonic() - self._read_at > REFRESH_S:
            self._read_at = time.monotonic()
            with suppress(UnavailableError):
                self._guard.ask(self._read, deadline)
        return self._held

    def _read(self) -> None:
        try:
            held: Any = self._store.smembers(self._key)
        except (redis.RedisError, OSError) as error:
            raise unavailable(self._store, error) from error
        ids = sorted(raw.decode() for raw in held)
        numbers = self._items.dense(ids) if ids else np.empty(0, np.int32)
        self._held = numbers[numbers >= 0]
