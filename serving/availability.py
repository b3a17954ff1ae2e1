"""Items that may not be shown now: a set in the online store, read at most once a second."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import redis

from headwater.errors import UnavailableError
from headwater.log import get_logger
from headwater.online.connect import unavailable
from headwater.online.keys import project_prefix
from serving.guard import Deadline, Guard
from serving.ports import Ints, Numbering

log = get_logger("serving")
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


class Withdrawn:
    """The set as it is in the store; while the store is down, as it last was. A server's bundles share it."""

    def __init__(self, store: redis.Redis, project: str, guard: Guard) -> None:
        self._store = store
        self._guard = guard
        self._key = key_of(project)
        self._held: frozenset[str] = frozenset()
        self._read_at = float("-inf")

    def ids(self, deadline: Deadline | None = None) -> frozenset[str]:
        """Ids of items; the same object while nothing has changed."""
        if time.monotonic() - self._read_at > REFRESH_S:
            self._read_at = time.monotonic()
            try:
                self._guard.ask(self._read, deadline)
            except UnavailableError:
                pass  # as it last was
            except Exception as error:  # a list without the set would show what is in it
                log.error("withdrawn_left_as_they_were", exc_info=error)
        return self._held

    def _read(self) -> None:
        try:
            raw: Any = self._store.smembers(self._key)
        except (redis.RedisError, OSError) as error:
            raise unavailable(self._store, error) from error
        found = frozenset(item.decode(errors="replace") for item in raw)
        if found != self._held:
            self._held = found


class StoredAvailability:
    """What has been withdrawn, in a bundle's numbers."""

    def __init__(self, withdrawn: Withdrawn, items: Numbering) -> None:
        self._withdrawn = withdrawn
        self._items = items
        self._known: tuple[frozenset[str], Ints] = (frozenset(), np.empty(0, np.int32))

    def unavailable(self, deadline: Deadline | None = None) -> Ints:
        ids, numbers = self._withdrawn.ids(deadline), self._known[1]
        if ids is not self._known[0]:
            numbers = self._items.dense(sorted(ids)) if ids else np.empty(0, np.int32)
            self._known = (ids, numbers := numbers[numbers >= 0])
        return numbers
