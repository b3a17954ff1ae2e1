"""The writing side of a mirror: everything once, then what the store says has changed, and what time itself changes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import redis
from numpy.typing import NDArray

from headwater.clock import Clock
from headwater.online.changes import Changes
from headwater.online.keys import Keys, entity_key, project_prefix
from headwater.online.mirror import Layout, holds
from headwater.online.names import Names
from headwater.online.reader import OnlineReader
from headwater.online.replies import Blobs
from headwater.online.shared import Draft, monotonic_ms, publish
from headwater.plan import FeaturePlan

CHUNK = 500
"""Entities read in one round trip, so that no other's command waits for long."""
_ROUNDS = 4
"""Of reading what has gone out of date while rows were read."""
_EVER = np.iinfo(np.int64)


class Keeper:
    """Keeps the rows of one mirror current, by turns.

    A row is read again when its key has changed, or when the clock leaves the time for which its values hold. What the
    rows say together holds at the instant of the turn: all that was written before it began is in them.
    """

    def __init__(
        self, store: redis.Redis, plan: FeaturePlan, clock: Clock, layout: Layout, ids: Names, path: Path
    ) -> None:
        self.path = path
        self._store, self._clock, self._layout, self._ids = store, clock, layout, ids
        self._reader = OnlineReader(store, plan, clock)
        self._prefix = entity_key(project_prefix(plan.project), layout.join_key, "")
        self._since, self._until = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)

    def changes(self) -> AbstractContextManager[Changes]:
        """What has changed from now on; errors as :meth:`Changes.of`."""
        return Changes.of(self._store, self._prefix)

    def fill(self) -> Draft:
        """Begin a file; its first turn reads everything.

        Raises
        ------
        OSError
            The disk has no room for it.
        """
        self._expire(slice(None))
        return Draft.of(self.path, len(self._ids), self._layout.width)

    def turn(self, changes: Changes, words: NDArray[np.int64]) -> int:
        """Bring all rows to the present; how many were read.

        Where the clock runs so fast that no reading of it holds for as long as rows take to be read, nothing is
        written, and the file goes out of date.

        Raises
        ------
        UnavailableError
            The store does not answer; rows that were to be read may be lost, so the file has to be filled anew.
        """
        began, keys = monotonic_ms(), changes.take()
        stale = np.full(len(self._ids), keys is None)
        stale[self._numbers(keys or ())] = True
        read: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        rows: list[NDArray[np.int64]] = [np.empty((0, self._layout.width), np.int64)]
        for _ in range(_ROUNDS):
            now = self._clock.now_ms()
            places = np.flatnonzero(stale | self._left(now))
            if not len(places):
                publish(words, np.concatenate(read), np.concatenate(rows), now, began)
                return sum(map(len, read))
            for begin in range(0, len(places), CHUNK):
                read.append(places[begin : begin + CHUNK])
                rows.append(self._read(read[-1]))
            stale[:] = False
        self._expire(np.concatenate(read))
        return 0

    def _expire(self, places: NDArray[np.int64] | slice) -> None:
        """Have rows read again, whatever the clock shows."""
        self._since[places], self._until[places] = _EVER.max, _EVER.min

    def _left(self, now: int) -> NDArray[np.bool_]:
        """Rows whose values do not hold at a reading of the clock."""
        return (now < self._since) | (now >= self._until)

    def _numbers(self, keys: Sequence[bytes] | set[bytes]) -> NDArray[np.int64]:
        found = self._ids.find(Blobs.of([key[len(self._prefix) :] for key in keys]))
        return found[found >= 0]

    def _read(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        keys = Keys([self._ids.take(places)])
        views, features = self._layout.views, self._layout.features
        reads = self._reader.read_views({view.name: keys for view in views}, features=features)
        bounds = [holds(view, reads[view.name]) for view in views]
        self._since[places] = np.max([since for since, _ in bounds], axis=0)
        self._until[places] = np.min([until for _, until in bounds], axis=0)
        return self._layout.pack(reads)
