"""Replies read off a connection; those of like values as arrays, without an object for each value.

Many entities' values of one table mostly have one length each, and then the replies to their HMGETs are records of one
length, whose framing is known from the first. Where the framing holds in every record, the values are columns of the
received bytes; where it does not (an entity is missing, a blob is longer), what was received goes to hiredis.

    *2\\r\\n $46\\r\\n <46 bytes> \\r\\n $42\\r\\n <42 bytes> \\r\\n      one reply of two values: 112 bytes
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from socket import socket
from typing import Any

import hiredis
import numpy as np
from numpy.typing import NDArray
from redis.cluster import ClusterParser
from redis.exceptions import ConnectionError as ClosedError

Column = list[bytes | None] | NDArray[np.void]
"""One field's values of many entities, ``None`` where there is none; an array where all have one length."""
FEWEST = 32
"""Below this many replies hiredis is quicker than numpy."""
_CHUNK = 1 << 15
_INCOMPLETE = object()


def list_of(column: Column) -> list[bytes | None]:
    """The column's values one by one."""
    return column if isinstance(column, list) else column.tolist()


def by_field(replies: Iterable[Any], width: int) -> list[Column]:
    """Replies to HMGETs of ``width`` fields, by field; an error is a reply of nothing."""
    values: list[bytes | None] = []
    for reply in replies:
        values += reply if type(reply) is list else [None] * width
    return [values[at::width] for at in range(width)]


@dataclass(frozen=True, slots=True)
class Framing:
    """What the bytes of like replies have in common: ``framing`` at ``places`` of each ``stride`` bytes."""

    stride: int
    places: NDArray[np.intp]
    framing: NDArray[np.uint8]
    values: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, received: bytes, width: int) -> "Framing | None":
        """As the first reply has it, of ``width`` values; ``None`` if it is incomplete or has a value missing."""
        at = len(head := b"*%d\r\n" % width)
        if received[:at] != head:
            return None
        values = []
        for _ in range(width):
            end = received.find(b"\r\n", at)
            length = received[at + 1 : end]
            if end < 0 or received[at : at + 1] != b"$" or not length.isdigit():
                return None
            values.append((end + 2, int(length)))
            at = end + 2 + int(length) + 2
        if len(received) < at:
            return None
        framed = np.ones(at, np.bool_)
        for begin, length_ in values:
            framed[begin : begin + length_] = False
        places = np.flatnonzero(framed)
        return cls(at, places, np.frombuffer(received, np.uint8, at)[places], tuple(values))

    def holds(self, received: NDArray[np.uint8]) -> bool:
        """Whether whole replies, and the beginning of one more, are framed like the first."""
        whole = len(received) // self.stride * self.stride
        rest = received[whole:]
        begun = self.places[: np.searchsorted(self.places, len(rest))]
        return bool(
            (received[:whole].reshape(-1, self.stride)[:, self.places] == self.framing).all()
            and (rest[begun] == self.framing[: len(begun)]).all()
        )

    def columns(self, received: bytearray) -> list[Column]:
        """The values, each column (n,) of raw bytes."""
        n = len(received) // self.stride
        return [np.ndarray(n, f"V{length}", received, begin, self.stride) for begin, length in self.values]


class Replies:
    """The replies that are still to come on a socket, read in order; the first error reply is kept in ``error``."""

    def __init__(self, source: socket) -> None:
        self.error: Exception | None = None
        self._source = source
        self._ahead = b""
        self._reader: Any = None

    def columns(self, n: int, width: int) -> list[Column]:
        """Replies to n HMGETs of ``width`` fields, by field."""
        alike = self._alike(n, width) if n >= FEWEST and self._reader is None else None
        return self._mixed(n, width) if alike is None else alike

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

    def _alike(self, n: int, width: int) -> list[Column] | None:
        received = self._ahead or self._receive()
        framing = Framing.of(received, width)
        if framing is None:
            self._ahead = received
            return None
        whole = bytearray(n * framing.stride)
        at, checked = min(len(whole), len(received)), 0
        whole[:at], self._ahead = received[:at], received[at:]
        while framing.holds(np.frombuffer(whole, np.uint8, at - checked, checked)):
            if at == len(whole):
                return framing.columns(whole)
            checked = at // framing.stride * framing.stride
            at += self._receive_into(memoryview(whole)[at:])
        self._ahead = bytes(whole[:at]) + self._ahead
        return None

    def _mixed(self, n: int, width: int) -> list[Column]:
        return by_field(self.take(n), width)

    def _receive(self) -> bytes:
        received = self._source.recv(_CHUNK)
        if not received:
            raise ClosedError("the connection was closed")
        return received

    def _receive_into(self, place: memoryview) -> int:
        received = self._source.recv_into(place)
        if not received:
            raise ClosedError("the connection was closed")
        return received


class Read:
    """Replies that have been read already, in order, as :class:`Replies` gives them."""

    def __init__(self, replies: Iterable[Any]) -> None:
        self._replies = iter(replies)

    def columns(self, n: int, width: int) -> list[Column]:
        """Replies to n HMGETs of ``width`` fields, by field."""
        return by_field(islice(self._replies, n), width)

    def take(self, n: int) -> list[Any]:
        """n replies of any kind."""
        return list(islice(self._replies, n))
