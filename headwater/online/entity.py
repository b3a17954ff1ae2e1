"""All that is stored under one entity, received by one command: whatever is keyed by it first is answered from there.

Who is asking, what they did to each candidate and to its category lie under the user's key. Read at once they cost one
round trip, and the server no look-up for each field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.online import keys as naming
from headwater.online.codec import Ints
from headwater.online.keys import Key, Keys
from headwater.online.names import Names
from headwater.online.replies import Blobs


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity's hash: ``fields`` and their ``values``, each (n,)."""

    join_key: str
    value: str
    fields: Names
    values: Blobs

    @classmethod
    def of(cls, join_key: str, value: str, reply: Blobs) -> "Entity":
        """An entity from a reply to HGETALL, (2 n_fields,): field, value, field, value, …"""
        fields, values = (Blobs(reply.raw, reply.starts[at::2].copy(), reply.sizes[at::2].copy()) for at in (0, 1))
        return cls(join_key, value, Names.of(fields), values)

    def holds(self, join_keys: Sequence[str], keys: Sequence[Key]) -> bool:
        """Whether all of these keys are stored under the entity."""
        return join_keys[0] == self.join_key and set(naming.firsts(keys)) <= {self.value}

    def partners(self, field: bytes, n_keys: int) -> Keys:
        """Keys of a table with so many join keys that have a value here, in no order."""
        from headwater.online import fields

        held = self.fields.texts
        places, raw = fields.partners(held.raw, held.starts, held.sizes, np.frombuffer(field, np.uint8))
        texts = raw.tobytes().decode().split("\0") if n_keys == 2 and len(places) else []
        if n_keys == 2 and len(texts) == len(places):
            return Keys([[self.value] * len(texts), texts])
        rests = Blobs(held.raw, held.starts[places] + fields.ID, held.sizes[places] - fields.ID).listed()
        others = [naming.other_keys(rest or b"") for rest in rests]
        return Keys([[self.value] * len(others), *([key[at] for key in others] for at in range(n_keys - 1))])

    def blobs(self, tables: Sequence[tuple[str, bytes]], keys: Sequence[Key]) -> Mapping[str, Blobs]:
        """Values of tables, as (id, field), for n keys that the entity holds."""
        texts = "\0".join(keys.columns[1]).encode() if isinstance(keys, Keys) and len(keys.columns) == 2 else b""
        if len(keys) and texts.count(0) == len(keys) - 1 and texts:
            named = np.frombuffer(texts, np.uint8)
            return {table: self._of_texts(field, named, len(keys)) for table, field in tables}
        rests = [naming.rest_of_key(key[1:]) for key in keys]
        return {table: self._values(Blobs.of([field + rest for rest in rests])) for table, field in tables}

    def _of_texts(self, field: bytes, texts: NDArray[np.uint8], n: int) -> Blobs:
        return Blobs(self.values.raw, *self.fields.values(self.values, np.frombuffer(field, np.uint8), texts, n))

    def _values(self, fields: Blobs) -> Blobs:
        places, values = self.fields.find(fields), self.values
        if not len(values):
            return Blobs(values.raw, np.zeros(len(places), np.int64), places)  # -1, all of them
        sizes: Ints = np.where(places < 0, -1, values.sizes[places])
        return Blobs(values.raw, values.starts[places], sizes)
