"""Who is asking, as of now: what they had lately and what they have the habit of."""

import threading
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headwater.online.reader import OnlineReader
from serving.ports import Ints, Numbering, State, UserState
from serving.surfaces import FeatureNames

REMEMBERED = 10_000


@dataclass(frozen=True)
class StateReader:
    """Reads a user's state from the online store, in one round trip for all that is stored under the user.

    What was read goes on with the state, so that hydration need not ask for it again.
    """

    reader: OnlineReader
    names: FeatureNames
    users: Numbering
    items: Numbering

    def unknown(self, user_id: str) -> UserState:
        """What is left where the store does not answer: who it is."""
        return UserState(user_id, int(self.users.dense([user_id])[0]))

    def read(self, user_id: str) -> UserState:
        """State as of now; ties go to the lower number, as in the candidates that the ranker learned on.

        Raises
        ------
        UnavailableError
            The store does not answer.
        """
        names = self.names
        held = self.reader.read_entity(names.user, user_id)
        keys = self.reader.partners(names.own, held)
        if not keys:
            return replace(self.unknown(user_id), held=held)
        wanted = {names.own: (names.own_weight, names.own_newest)}
        read = self.reader.read_views({names.own: keys}, held=held, features=wanted)[names.own]
        values = read.values
        items = self.items.dense(keys.columns[1])
        weight, newest = (_or_zero(np.asarray(values[name], np.float64)) for name in wanted[names.own])
        age_ms = read.at - newest.astype(np.int64)
        known = items >= 0  # items newer than the bundle are left out
        items, weight, newest, age_ms = items[known], weight[known], newest[known], age_ms[known]
        lately = np.lexsort((items, -newest))[: names.recent]
        own: Ints = items[np.lexsort((items, -weight))]
        return replace(self.unknown(user_id), recent=items[lately], own=own, recent_age_ms=age_ms[lately], held=held)


def _or_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(values), 0.0, values)


class Remembering:
    """What users were when they were last read, for while the store is away; the least recent are forgotten first."""

    def __init__(self, state: State, most: int = REMEMBERED) -> None:
        self._state = state
        self._most = most
        self._held: dict[str, UserState] = {}
        self._lock = threading.Lock()

    def read(self, user_id: str) -> UserState:
        found = self._state.read(user_id)
        with self._lock:
            self._held.pop(user_id, None)
            self._held[user_id] = replace(found, held=None)
            if len(self._held) > self._most:
                del self._held[next(iter(self._held))]
        return found

    def unknown(self, user_id: str) -> UserState:
        held = self._held.get(user_id)
        return self._state.unknown(user_id) if held is None else held
