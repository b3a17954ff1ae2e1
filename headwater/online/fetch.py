"""The blobs of several views for their own entities, in one round trip.

One HMGET an entity for all views that are keyed by it alone, one HMGET a first entity for composite views. The commands
are packed here rather than argument by argument, which was half of a read's CPU time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headwater.online.keys import encoded, entity_key, rests_of_keys
from headwater.online.replies import Column, Read, Replies
from headwater.online.wire import Starts, Wire, bulk

Key = tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class _Commands:
    """Packed: each of ``heads`` followed by the same ``tail``."""

    heads: list[bytes]
    tail: bytes


def fetch(wire: Wire, prefix: bytes, wanted: Sequence[Wanted]) -> Mapping[tuple[str, str], Column]:
    """Blobs by (view, table id), in the order of the view's keys, ``None`` where there is none."""
    # Single keys first, the longest of them first: what follows replies of unlike lengths is read one by one.
    batches = sorted(_batches(wanted), key=lambda batch: (len(batch.join_keys) > 1, -len(batch.keys)))
    places = [_places(batch) for batch in batches]
    commands = [_pack(prefix, *pair) for pair in zip(batches, places, strict=True)]
    if not any(one.heads for one in commands):
        return {name: [] for batch in batches for name in batch.names}

    def read(replies: Replies | Read) -> dict[tuple[str, str], Column]:
        return {
            name: column
            for batch, held in zip(batches, places, strict=True)
            for name, column in zip(batch.names, _columns(replies, batch, held), strict=True)
        }

    if wire.cluster is None:
        return wire.exchange(b"".join([one.tail.join([*one.heads, b""]) for one in commands]), read)
    keys = [key for pair in zip(batches, places, strict=True) for key in _owners(prefix, *pair)]
    return read(Read(wire.send([head + one.tail for one in commands for head in one.heads], keys)))


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
    return [base + owner for owner in encoded([key[0] for key in batch.keys] if places is None else list(places))]


def _pack(prefix: bytes, batch: _Batch, places: Mapping[str, Sequence[int]] | None) -> _Commands:
    return _alone(prefix, batch) if places is None else _composite(prefix, batch, places)


def _alone(prefix: bytes, batch: _Batch) -> _Commands:
    fields = b"\r\n" + b"".join(map(bulk, batch.fields))
    starts = Starts(b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(batch.fields)), entity_key(prefix, batch.join_keys[0], ""))
    owners = encoded([key[0] for key in batch.keys])
    return _Commands([starts[len(owner)] + owner for owner in owners], fields)


def _composite(prefix: bytes, batch: _Batch, places: Mapping[str, Sequence[int]]) -> _Commands:
    rests = rests_of_keys(batch.keys)
    starts = [Starts(b"", field) for field in batch.fields]
    commands = []
    for first, held in places.items():
        fields = [start[len(rests[at])] + rests[at] for at in held for start in starts]
        owner = bulk(entity_key(prefix, batch.join_keys[0], first))
        commands.append(b"*%d\r\n$5\r\nHMGET\r\n%b%b\r\n" % (2 + len(fields), owner, b"\r\n".join(fields)))
    return _Commands(commands, b"")


def _columns(replies: Replies | Read, batch: _Batch, places: Mapping[str, Sequence[int]] | None) -> Sequence[Column]:
    width = len(batch.fields)
    if places is None:
        return replies.columns(len(batch.keys), width)
    columns: list[list[bytes | None]] = [[None] * len(batch.keys) for _ in batch.names]
    for reply, held in zip(replies.take(len(places)), places.values(), strict=True):
        if type(reply) is list:  # an error is raised once all replies are read
            for column, blobs in enumerate(columns):
                for at, blob in zip(held, reply[column::width], strict=True):
                    blobs[at] = blob
    return columns
