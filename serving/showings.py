"""What each user has been shown lately, so that what they leave lying is not shown for ever.

One sorted set a user, in the store that all server processes share: a member is a reply's items, its score the clock's
time. It is read within the request where a surface asks for it and written behind the reply; if the write is lost, the
items are shown once more.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import redis

from headwater.errors import UnavailableError
from headwater.online.connect import unavailable
from headwater.online.keys import project_prefix, showings_key
from serving.guard import Guard
from serving.ports import Ints, Numbering, UserState
from serving.surfaces import Served

MOST_REPLIES = 1_000
"""Kept of each user."""
GARBAGE_MS = timedelta(days=7) // timedelta(milliseconds=1)
"""The store forgets a user this long, in wall time, after what was shown last has lost its meaning."""

Shown = Mapping[str, tuple[int, int]]
"""How often an item was shown, and when first, by its id."""


NOTHING_SHOWN: Shown = {}


class Showings(Protocol):
    """Remembers what was shown."""

    def since(self, user_id: str, since_ms: int) -> Shown:
        """What was shown after an instant.

        Raises
        ------
        UnavailableError
            The store does not answer.
        """
        ...

    def note(self, user_id: str, request_id: str, item_ids: Sequence[str], at_ms: int, keep_ms: int) -> None:
        """Remember a reply for so long; does not wait."""
        ...


class Nowhere:
    """Nothing is remembered."""

    def since(self, user_id: str, since_ms: int) -> Shown:
        del user_id, since_ms
        return NOTHING_SHOWN

    def note(self, user_id: str, request_id: str, item_ids: Sequence[str], at_ms: int, keep_ms: int) -> None:
        del user_id, request_id, item_ids, at_ms, keep_ms


@dataclass(frozen=True)
class StoredShowings:
    """In the online store, beside the user's values: ``join_key`` is the users'.

    ``records`` is false where lists are made that nobody sees.
    """

    store: redis.Redis
    project: str
    join_key: str
    guard: Guard
    records: bool = True

    def since(self, user_id: str, since_ms: int) -> Shown:
        try:
            held: Any = self.store.zrangebyscore(self._key(user_id), f"({since_ms}", "+inf", withscores=True)
        except (redis.RedisError, OSError) as error:
            raise unavailable(self.store, error) from error
        found: dict[str, tuple[int, int]] = {}
        for member, at_ms in held:  # oldest first
            for item_id in json.loads(member)[1:]:
                times, first = found.get(item_id, (0, int(at_ms)))
                found[item_id] = times + 1, first
        return found

    def note(self, user_id: str, request_id: str, item_ids: Sequence[str], at_ms: int, keep_ms: int) -> None:
        if not self.records or not item_ids:
            return
        with suppress(UnavailableError):  # away, so that it is shown once more
            self.guard.start(lambda: self._write(user_id, json.dumps([request_id, *item_ids]), at_ms, keep_ms))

    def _write(self, user_id: str, member: str, at_ms: int, keep_ms: int) -> None:
        key = self._key(user_id)
        try:
            self.store.zadd(key, {member: at_ms})
            self.store.zremrangebyscore(key, "-inf", at_ms - keep_ms)
            self.store.zremrangebyrank(key, 0, -MOST_REPLIES - 1)
            self.store.pexpire(key, keep_ms + GARBAGE_MS)
        except (redis.RedisError, OSError) as error:
            raise unavailable(self.store, error) from error

    def _key(self, user_id: str) -> bytes:
        return showings_key(project_prefix(self.project), self.join_key, user_id)


def left_lying(shown: Shown, served: Served, user: UserState, items: Numbering) -> Ints:
    """Items shown often enough and not had since they were shown first (n,)."""
    often = {item_id: first for item_id, (times, first) in shown.items() if times >= served.times}
    numbers, first_ms = items.dense(list(often)), np.fromiter(often.values(), np.int64, len(often))
    had_ms = dict(zip(user.recent.tolist(), (user.now_ms - user.recent_age_ms).tolist(), strict=True))
    acted = np.fromiter((had_ms.get(item, -1) for item in numbers.tolist()), np.int64, len(often)) >= first_ms
    return numbers[(numbers >= 0) & ~acted]
