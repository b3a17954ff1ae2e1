"""Taking one entity out of the online store: its own keys, and its fields under the keys of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from headwater.online.keys import entity_key, other_keys, project_prefix, rest_of_key, showings_key
from headwater.plan import FeaturePlan

_FIELD_ID = 8
"""Bytes of a table's or view's id, before the rest of the key."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What was deleted; ``unknown`` fields are of definitions that are applied no more, and were left."""

    keys: int = 0
    fields: int = 0
    unknown: int = 0


def erase_entity(client: redis.Redis, plan: FeaturePlan, join_key: str, value: str) -> Erased:
    """Delete an entity from a project, on one server or on a cluster; what others have in common with it stays."""
    prefix = project_prefix(plan.project)
    own = _erase_own(client, entity_key(prefix, join_key, value), showings_key(prefix, join_key, value))
    under_others = _Fields.of(plan, join_key)
    found = [own]
    if under_others.places:
        for first in under_others.first_keys:
            pattern = _escaped(entity_key(prefix, first, "")) + b"*"
            found += [under_others.erase(client, key, value) for key in client.scan_iter(match=pattern, count=1000)]
    return Erased(*(sum(getattr(one, name) for one in found) for name in ("keys", "fields", "unknown")))


def _erase_own(client: Any, key: bytes, shown: bytes) -> Erased:
    fields = int(client.hlen(key))
    return Erased(int(client.delete(key)) + int(client.delete(shown)), fields)


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where a join key lies within the fields: by the id of a table, its place among the rest of the key."""

    known: frozenset[bytes]
    places: dict[bytes, int]
    first_keys: tuple[str, ...]

    @classmethod
    def of(cls, plan: FeaturePlan, join_key: str) -> "_Fields":
        windowed = [(table.field, view.join_keys) for view in plan.views for table in view.tables]
        stored = [*windowed, *((view.field, view.join_keys) for view in plan.batch_views)]
        places = {field: keys.index(join_key) - 1 for field, keys in stored if join_key in keys[1:]}
        first = dict.fromkeys(keys[0] for field, keys in stored if field in places)
        return cls(frozenset(field for field, _ in stored), places, tuple(first))

    def erase(self, client: Any, key: bytes, value: str) -> Erased:
        held = client.hkeys(key)
        doomed = [field for field in held if self._is_of(field, value)]
        if doomed:
            client.hdel(key, *doomed)
        return Erased(fields=len(doomed), unknown=sum(field[:_FIELD_ID] not in self.known for field in held))

    def _is_of(self, field: bytes, value: str) -> bool:
        place = self.places.get(field[:_FIELD_ID])
        return place is not None and other_keys(field[_FIELD_ID:])[place] == value


def erase_fields(client: Any, project: str, join_keys: Sequence[str], field: bytes, keys: Sequence[Any]) -> None:
    """Delete a table's values of some entities, given by their values of ``join_keys``."""
    prefix = project_prefix(project)
    for key in dict.fromkeys(keys):
        client.hdel(entity_key(prefix, join_keys[0], key[0]), field + rest_of_key(key[1:]))


def _escaped(text: bytes) -> bytes:
    """A pattern that matches the text alone."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]^\\" else bytes([byte]) for byte in text)
