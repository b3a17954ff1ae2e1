"""Replies read off a connection; values of many entities as places in the received bytes, without an object for each.

    *2\\r\\n $46\\r\\n <46 bytes> \\r\\n $42\\r\\n <42 bytes> \\r\\n      one reply of two values: 112 bytes

Where a reply is of another kind than was asked for, it and what follows goes to hiredis.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from socket import socket
from typing import Any

import hiredis
import numpy as np
from numpy.typing import NDArray
from redis.cluster import ClusterParser
from redis.exceptions import ConnectionError as ClosedError

from headwater.online.connect import hurry

_CHUNK = 1 << 15
_SIZE, _ROOM = 64, 1.125
"""Bytes of a value, at first; then replies are taken to be as long as those read, and a little longer."""
_INCOMPLETE = object()

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Blobs:
    """One field's values of n entities. ``starts, sizes`` (n,): where each lies in ``raw``; size -1 where none is."""

    raw: NDArray[np.uint8]
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> "Blobs":
        sizes = np.fromiter((-1 if value is None else len(value) for value in values), np.int64, len(values))
        lengths = np.maximum(sizes, 0)
        joined = bytearray().join([value or b"" for value in values])
        return cls(np.frombuffer(joined, np.uint8), np.cumsum(lengths) - lengths, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, places: NDArray[np.intp] | slice) -> "Blobs":
        """Those of some entities."""
        return Blobs(self.raw, self.starts[places], self.sizes[places])

    def joined(self) -> NDArray[np.uint8]:
        """The values end to end, a zero byte between two."""
        from headwater.online import fields

        return fields.joined(self.raw, self.starts, self.sizes)

    def listed(self) -> list[bytes | None]:
        """The values one by one."""
        places = zip(self.starts.tolist(), self.sizes.tolist(), strict=True)
        return [None if size < 0 else self.raw[start : start + size].tobytes() for start, size in places]


def by_field(replies: Iterable[Any], width: int) -> list[Blobs]:
    """Replies to HMGETs of ``width`` fields, by field; an error is a reply of nothing."""
    values: list[bytes | None] = []
    for reply in replies:
        values += reply if type(reply) is list else [None] * width
    return [Blobs.of(values[at::width]) for at in range(width)]


class Replies:
    """The replies that are still to come on a socket, read in order; the first error reply is kept in ``error``."""

    def __init__(self, source: socket) -> None:
        self.error: Exception | None = None
        self._source = source
        self._ahead = b""
        self._reader: Any = None

    def columns(self, n: int, width: int) -> list[Blobs]:
        """Replies to n HMGETs of ``width`` fields, by field."""
        found = self._scanned(n, width) if self._reader is None else None
        return by_field(self.take(n), width) if found is None else found

    def strings(self) -> Blobs:
        """The values of one reply, an array of however many; of another kind of reply, none."""
        found = self._array() if self._reader is None else None
        if found is None:  # an error, which is raised once all replies are read
            (reply,) = self.take(1)
            found = Blobs.of(reply if type(reply) is list else [])
        return found

    def take(self, n: int) -> list[Any]:
        """n replies of any kind."""
        if self._reader is None:
            self._reader = hiredis.Reader(replyError=ClusterParser.parse_error, notEnoughData=_INCOMPLETE)
            self._reader.feed(self._ahead)
        reader = self._reader
        found: list[Any] = []
        while len(found) < n:
            if (reply := reader.gets()) is _INCOMPLETE:
                reader.feed(self._receive())
                continue
            if isinstance(reply, Exception):
                self.error = self.error or reply
            found.append(reply)
        return found

    def _scanned(self, n: int, width: int) -> list[Blobs] | None:
        from headwater.online.kernels import FOREIGN, scan  # what only writes needs no compiled loops

        places = np.empty((2, n * width), np.int64)
        raw = np.empty(max(_CHUNK, n * width * _SIZE, len(self._ahead)), np.uint8)
        raw[: len(self._ahead)] = np.frombuffer(self._ahead, np.uint8)
        begun, end, done = 0, len(self._ahead), 0
        while True:
            begun, done, found = scan(raw, begun, end, places[0], places[1], done, width)
            if found == FOREIGN:
                self._ahead = raw[:end].tobytes()
                return None
            if done == n * width:
                self._ahead = raw[begun:end].tobytes()
                return [Blobs(raw, *places[:, at::width].copy()) for at in range(width)]
            if end == len(raw):
                raw = _longer(raw, int(_ROOM * begun / done * n * width) if done else 0)
            end += self._receive_into(raw[end:].data)

    def _array(self) -> Blobs | None:
        from headwater.online import fields
        from headwater.online.kernels import FOREIGN

        raw = np.empty(max(_CHUNK, len(self._ahead)), np.uint8)
        raw[: len(self._ahead)] = np.frombuffer(self._ahead, np.uint8)
        begun, end, done = 0, len(self._ahead), 0
        places: NDArray[np.int64] | None = None
        while True:
            if places is None:
                n, at = fields.head(raw, 0, end)
                if n >= 0:
                    places, begun = np.empty((2, n), np.int64), at
                elif n == fields.OTHER:
                    break
            if places is not None:
                begun, done, found = fields.strings(raw, begun, end, places[0], places[1], done)
                if found == FOREIGN:
                    break
                if done == places.shape[1]:
                    self._ahead = raw[begun:end].tobytes()
                    return Blobs(raw, *places)
            if end == len(raw):
                raw = _longer(raw, 0 if places is None or not done else int(_ROOM * begun / done * places.shape[1]))
            end += self._receive_into(raw[end:].data)
        self._ahead = raw[:end].tobytes()
        return None

    def _receive(self) -> bytes:
        hurry(self._source)
        received = self._source.recv(_CHUNK)
        if not received:
            raise ClosedError("the connection was closed")
        return received

    def _receive_into(self, place: memoryview) -> int:
        hurry(self._source)
        received = self._source.recv_into(place)
        if not received:
            raise ClosedError("the connection was closed")
        return received


def _longer(raw: NDArray[np.uint8], expected: int) -> NDArray[np.uint8]:
    longer = np.empty(max(expected, 2 * len(raw)), np.uint8)
    longer[: len(raw)] = raw
    return longer


class Read:
    """Replies that have been read already, in order, as :class:`Replies` gives them."""

    def __init__(self, replies: Iterable[Any]) -> None:
        self._replies = iter(replies)

    def columns(self, n: int, width: int) -> list[Blobs]:
        """Replies to n HMGETs of ``width`` fields, by field."""
        return by_field(islice(self._replies, n), width)

    def take(self, n: int) -> list[Any]:
        """n replies of any kind."""
        return list(islice(self._replies, n))
