"""The blobs of several views for their own entities, in one round trip.

One HMGET an entity for all views that are keyed by it alone, one HMGET a first entity for composite views. The commands
are packed here rather than argument by argument, which was half of a read's CPU time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headwater.online.keys import Key, encoded, entity_key, firsts, rests_of_keys
from headwater.online.replies import Blobs, Read, Replies
from headwater.online.wire import Starts, Wire, bulk


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tables of one view, as (table id, field), for distinct entities."""

    view: str
    join_keys: tuple[str, ...]
    tables: tuple[tuple[str, bytes], ...]
    keys: Sequence[Key]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Views over the very same entities: ``names`` and ``fields`` of all their tables."""

    join_keys: tuple[str, ...]
    keys: Sequence[Key]
    names: list[tuple[str, str]]
    fields: list[bytes]


def fetch(wire: Wire, prefix: bytes, wanted: Sequence[Wanted]) -> Mapping[tuple[str, str], Blobs]:
    """Blobs by (view, table id), in the order of the view's keys, ``None`` where there is none."""
    # Single keys first, the longest of them first: what follows replies of unlike lengths is read one by one.
    batches = sorted(_batches(wanted), key=lambda batch: (len(batch.join_keys) > 1, -len(batch.keys)))
    places = [_places(batch) for batch in batches]
    if not any(batch.keys for batch in batches):
        return {name: Blobs.of([]) for batch in batches for name in batch.names}

    def read(replies: Replies | Read) -> dict[tuple[str, str], Blobs]:
        return {
            name: column
            for batch, held in zip(batches, places, strict=True)
            for name, column in zip(batch.names, _columns(replies, batch, held), strict=True)
        }

    if wire.cluster is None:
        return wire.exchange(b"".join([_packed(prefix, *pair) for pair in zip(batches, places, strict=True)]), read)
    commands = [one for pair in zip(batches, places, strict=True) for one in _commands(prefix, *pair)]
    keys = [key for pair in zip(batches, places, strict=True) for key in _owners(prefix, *pair)]
    return read(Read(wire.send(commands, keys)))


def _batches(wanted: Sequence[Wanted]) -> list[_Batch]:
    batches: dict[tuple[tuple[str, ...], int], _Batch] = {}
    for one in wanted:
        batch = batches.setdefault((one.join_keys, id(one.keys)), _Batch(one.join_keys, one.keys, [], []))
        batch.names.extend((one.view, table_id) for table_id, _ in one.tables)
        batch.fields.extend(field for _, field in one.tables)
    return list(batches.values())


def _places(batch: _Batch) -> dict[str, list[int]] | None:
    """Places of the keys by their first value, for composite keys."""
    if len(batch.join_keys) == 1:
        return None
    places: dict[str, list[int]] = {}
    for at, key in enumerate(batch.keys):
        places.setdefault(key[0], []).append(at)
    return places


def _owners(prefix: bytes, batch: _Batch, places: Mapping[str, Sequence[int]] | None) -> list[bytes]:
    """The key of each command."""
    base = entity_key(prefix, batch.join_keys[0], "")
    return [base + owner for owner in encoded(firsts(batch.keys) if places is None else list(places))]


def _packed(prefix: bytes, batch: _Batch, places: Mapping[str, Sequence[int]] | None) -> bytes | memoryview:
    """The commands end to end; all at once where one text can be told from the next."""
    from headwater.online import kernels

    texts = "\0".join(owners := firsts(batch.keys)).encode()
    if places is not None or texts.count(0) != len(owners) - 1:
        return b"".join(_commands(prefix, batch, places))
    head, tail = _around(batch)
    parts = texts, head, entity_key(prefix, batch.join_keys[0], ""), tail
    return kernels.commands(len(owners), *(np.frombuffer(part, np.uint8) for part in parts)).data


def _commands(prefix: bytes, batch: _Batch, places: Mapping[str, Sequence[int]] | None) -> list[bytes]:
    if places is not None:
        return _composite(prefix, batch, places)
    head, tail = _around(batch)
    starts = Starts(head, entity_key(prefix, batch.join_keys[0], ""))
    return [starts[len(owner)] + owner + tail for owner in encoded(firsts(batch.keys))]


def _around(batch: _Batch) -> tuple[bytes, bytes]:
    """What precedes and what follows the entity in each command."""
    return b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(batch.fields)), b"\r\n" + b"".join(map(bulk, batch.fields))


def _composite(prefix: bytes, batch: _Batch, places: Mapping[str, Sequence[int]]) -> list[bytes]:
    rests = rests_of_keys(batch.keys)
    starts = [Starts(b"", field) for field in batch.fields]
    commands = []
    for first, held in places.items():
        fields = [start[len(rests[at])] + rests[at] for at in held for start in starts]
        owner = bulk(entity_key(prefix, batch.join_keys[0], first))
        commands.append(b"*%d\r\n$5\r\nHMGET\r\n%b%b\r\n" % (2 + len(fields), owner, b"\r\n".join(fields)))
    return commands


def _columns(replies: Replies | Read, batch: _Batch, places: Mapping[str, Sequence[int]] | None) -> Sequence[Blobs]:
    width = len(batch.fields)
    if places is None:
        return replies.columns(len(batch.keys), width)
    columns: list[list[bytes | None]] = [[None] * len(batch.keys) for _ in batch.names]
    for reply, held in zip(replies.take(len(places)), places.values(), strict=True):
        if type(reply) is list:  # an error is raised once all replies are read
            for column, blobs in enumerate(columns):
                for at, blob in zip(held, reply[column::width], strict=True):
                    blobs[at] = blob
    return [Blobs.of(column) for column in columns]
