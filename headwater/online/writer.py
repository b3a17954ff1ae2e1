"""Idempotent writes: every value is absolute, and a compare-and-set inside the store keeps the newer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray
from redis.exceptions import NoScriptError

from headwater.online import codec
from headwater.online.cuts import mark_dropped
from headwater.online.keys import encoded, entity_key, project_prefix, rests_of_keys
from headwater.online.wire import Starts, Wire, bulk, packed_array, packed_texts
from headwater.plan import BatchView, Table

_PAIRS = 128
"""Fields and blobs in one script call, so that none holds the store up for long."""
_BYTES = 1 << 20
"""Sent before replies are awaited, about."""
Key = tuple[str, ...]
Blobs = Sequence[bytes] | NDArray[Any]
"""A blob for each key; an array where all have one length."""


_Written = tuple[Sequence[bytes], Sequence[str], bytes, Sequence[Key], Blobs]
"""Arguments of the script, join keys, field, and a blob for each key."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile records of one table, n rows.

    ``keys`` (n,): values of ``join_keys``, in the view's order. ``columns``, each (n,): ``tile, slot, count, newest,
    ingest, hash`` and, for a fixed table, its partials by name. ``payloads`` (n,): for a list table, packed entries.
    """

    table: Table
    join_keys: Sequence[str]
    keys: Sequence[Key]
    columns: dict[str, NDArray[Any]]
    payloads: Sequence[bytes] | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """Entities, and for each of them the number of pairs and the pairs, packed; ``owner`` is the first entity's key."""

    owner: bytes
    n_keys: int
    keys: bytes
    n_arguments: int
    arguments: bytes


class OnlineWriter:
    """Writes tiles and ready-made rows of one project."""

    def __init__(self, client: redis.Redis, project: str) -> None:
        self._client = client
        self._project = project
        self._wire = Wire(client)
        self._prefix = project_prefix(project)
        scripts = files("headwater.online")
        self._scripts = {name: (scripts / f"{name}.lua").read_text() for name in ("merge_tiles", "put_rows")}
        self._shas: dict[str, bytes] = {}

    def write_tiles(
        self,
        table: Table,
        join_keys: Sequence[str],
        keys: Sequence[Key],
        columns: dict[str, NDArray[Any]],
        payloads: Sequence[bytes] | None = None,
        replace: int | None = None,
    ) -> int:
        """Merge tile records of one table, as :meth:`write_tables` does of several."""
        return self.write_tables([Tiles(table, join_keys, keys, columns, payloads)], replace)

    def write_tables(self, written: Sequence[Tiles], replace: int | None = None) -> int:
        """Merge tile records, of several tables in as few round trips as their size allows.

        Parameters
        ----------
        replace
            A slot whose records are replaced even by such that have folded fewer events: what its one writer has
            written last counts.

        Returns
        -------
        Number of store commands sent.
        """
        calls = []
        for one in written:
            distinct, blobs = codec.pack_blobs(one.table, one.keys, one.columns, one.payloads)
            size = codec.record_dtype(one.table).itemsize if one.payloads is None else 0
            settings = (b"%d" % size, b"%d" % one.table.keep, b"%d" % (-1 if replace is None else replace))
            calls.append((settings, one.join_keys, one.table.field, distinct, blobs))
        return self._run("merge_tiles", calls)

    def write_rows(self, view: BatchView, keys: Sequence[Key], rows: Blobs) -> int:
        """Write rows packed by :mod:`headwater.online.codec`; the newer (event, created) time wins.

        Returns
        -------
        Number of store commands sent.
        """
        return self._run("put_rows", [((), view.join_keys, view.field, keys, rows)])

    def drop(self, fields: Sequence[bytes]) -> None:
        """Delete the fields of removed tables from every entity of this project, and of this project alone."""
        mark_dropped(self._client, self._project, [field.hex() for field in fields])
        for key in self._client.scan_iter(match=self._prefix + b"*", count=1000):
            names: Any = self._client.hkeys(key)
            held = [field for field in names if field[:8] in fields]
            if held:
                self._client.hdel(key, *held)

    def _run(self, script: str, written: Sequence[_Written]) -> int:
        while True:
            try:
                return self._send(self._commands(script, written))
            except NoScriptError:
                self._shas.clear()

    def _commands(self, script: str, written: Sequence[_Written]) -> Iterator[tuple[bytes, bytes]]:
        """An entity's key and the command that calls a script for many entities at once.

        It is one at a time where a cluster holds them in other slots.
        """
        head = bulk(b"EVALSHA") + bulk(self._sha(script))
        most = _PAIRS if self._wire.cluster is None else 1
        for settings, join_keys, field, keys, blobs in written:
            fixed = b"".join(map(bulk, settings))
            calls = _alone if len(join_keys) == 1 else _composite
            for call in calls(entity_key(self._prefix, join_keys[0], ""), field, keys, blobs, most):
                n = b"*%d\r\n" % (3 + call.n_keys + len(settings) + call.n_arguments)
                yield call.owner, b"".join((n, head, bulk(b"%d" % call.n_keys), call.keys, fixed, call.arguments))

    def _send(self, commands: Iterator[tuple[bytes, bytes]]) -> int:
        waiting: list[bytes] = []
        owners: list[bytes] = []
        sent, size = 0, 0
        for owner, command in commands:
            waiting.append(command)
            owners.append(owner)
            sent, size = sent + 1, size + len(command)
            if size > _BYTES:
                self._wire.send(waiting, owners)
                waiting, owners, size = [], [], 0
        self._wire.send(waiting, owners)
        return sent

    def _sha(self, script: str) -> bytes:
        if script not in self._shas:
            self._shas[script] = self._wire.load(self._scripts[script].encode())
        return self._shas[script]


def _alone(base: bytes, field: bytes, keys: Sequence[Key], blobs: Blobs, most: int) -> Iterator[_Call]:
    """One pair an entity."""
    names = encoded([key[0] for key in keys])
    owners = packed_texts(names, base)
    before = bulk(b"1") + bulk(field)
    pairs = packed_array(blobs, before) if isinstance(blobs, np.ndarray) else packed_texts(blobs, before=before)
    for begin in range(0, len(keys), most):
        end = min(begin + most, len(keys))
        yield _Call(base + names[begin], end - begin, owners(begin, end), 3 * (end - begin), pairs(begin, end))


def _composite(base: bytes, field: bytes, keys: Sequence[Key], blobs: Blobs, most: int) -> Iterator[_Call]:
    """Each entity's pairs together, at most :data:`_PAIRS` of them in a call."""
    values = blobs.view(f"V{blobs.itemsize}").tolist() if isinstance(blobs, np.ndarray) else blobs
    starts = Starts(b"", field)
    by_owner: dict[str, list[bytes]] = {}
    for key, rest, value in zip(keys, rests_of_keys(keys), values, strict=True):
        pair = b"%b%b\r\n$%d\r\n%b\r\n" % (starts[len(rest)], rest, len(value), value)
        by_owner.setdefault(key[0], []).append(pair)
    owners: list[bytes] = []
    arguments: list[bytes] = []
    pairs = 0
    for owner, packed in by_owner.items():
        for begin in range(0, len(packed), _PAIRS):
            some = packed[begin : begin + _PAIRS]
            if owners and (len(owners) == most or pairs + len(some) > _PAIRS):
                yield _Call(
                    owners[0], len(owners), b"".join(map(bulk, owners)), len(owners) + 2 * pairs, b"".join(arguments)
                )
                owners, arguments, pairs = [], [], 0
            owners.append(base + owner.encode())
            arguments += [bulk(b"%d" % len(some)), *some]
            pairs += len(some)
    if owners:
        yield _Call(owners[0], len(owners), b"".join(map(bulk, owners)), len(owners) + 2 * pairs, b"".join(arguments))
