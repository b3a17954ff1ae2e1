"""Many commands, one round trip: RESP packed by hand, since packing argument by argument is most of a client's time."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import redis
from numpy.typing import NDArray
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from headwater.online.connect import Store, UnreadyError, hurry, is_hurried, unavailable, waits
from headwater.online.nodes import ask, ask_each
from headwater.online.replies import Blobs, Replies

Read = TypeVar("Read")


def bulk(value: bytes) -> bytes:
    """One argument as RESP (Redis serialization protocol)."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def pack(arguments: Sequence[bytes]) -> bytes:
    """One command."""
    return b"*%d\r\n" % len(arguments) + b"".join(map(bulk, arguments))


class Starts(dict[int, bytes]):
    """What precedes a text of so many bytes: ``head``, the argument's length and its ``base``; made once a length."""

    def __init__(self, head: bytes, base: bytes) -> None:
        self._head, self._base = head, base

    def __missing__(self, length: int) -> bytes:
        start = self[length] = b"%b$%d\r\n%b" % (self._head, len(self._base) + length, self._base)
        return start


Slice = Callable[[int, int], bytes]
"""Arguments from one place to another, packed."""


def packed_texts(texts: Sequence[bytes], base: bytes = b"", before: bytes = b"") -> Slice:
    """Texts as arguments that begin with ``base``, each after the same packed arguments."""
    starts = Starts(before, base)
    parts = [starts[len(text)] + text for text in texts]
    return lambda begin, end: b"\r\n".join([*parts[begin:end], b""])


def packed_array(values: NDArray[Any], before: bytes = b"") -> Slice:
    """Values of one length as arguments, each after the same packed arguments."""
    size = values.itemsize
    head = b"%b$%d\r\n" % (before, size)
    framed = np.empty(len(values), [("head", f"V{len(head)}"), ("value", f"V{size}"), ("end", "V2")])
    framed["head"], framed["value"], framed["end"] = np.void(head), values.view(f"V{size}"), np.void(b"\r\n")
    return lambda begin, end: framed[begin:end].tobytes()


class Wire:
    """Sends packed commands over a pooled connection, of each node in a cluster, and reads as many replies."""

    def __init__(self, client: redis.Redis) -> None:
        self._client, self._pool = client, client.connection_pool
        self._loads: dict[bytes, bytes] = {}
        self._idle: list[Any] = []
        self._pid = os.getpid()

    @property
    def cluster(self) -> Any:
        """The ``RedisCluster`` whose nodes have to be asked for a key each, ``None`` where one server has all keys."""
        if not isinstance(self._client, Store):
            return None
        if is_hurried() and not self._client.is_one_server:
            raise UnreadyError
        return self._client.as_cluster

    def send(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Any]:
        """Replies to packed commands, in order; errors as :meth:`exchange` has them.

        Parameters
        ----------
        keys : (n,)
            Of each command one key; a command in a cluster has no other.
        """
        if not commands:
            return []
        if (cluster := self.cluster) is None:
            return self.exchange(b"".join(commands), lambda replies: replies.take(len(commands)))
        return self._asked(cluster, lambda: ask(cluster, commands, keys, list(self._loads.values())))

    def strings(self, command: bytes, key: bytes) -> Blobs:
        """The values of the one array that a packed command of one key is answered with."""
        if self.cluster is None:
            return self.exchange(command, lambda replies: replies.strings())
        (reply,) = self.send([command], [key])
        return Blobs.of(reply)

    def load(self, script: bytes) -> bytes:
        """Make a Lua script known to the server or to every node of the cluster; its digest."""
        command = self._loads[script] = pack((b"SCRIPT", b"LOAD", script))
        if (cluster := self.cluster) is None:
            digests = self.exchange(command, lambda replies: replies.take(1))
        else:
            digests = self._asked(cluster, lambda: ask_each(cluster, command))
        digest: bytes = digests[0]
        return digest

    def exchange(self, packed: bytes, read: Callable[[Replies], Read]) -> Read:
        """Send commands packed end to end to the one server and let ``read`` take all their replies.

        Raises
        ------
        NoScriptError
            A script is not loaded: the caller has another way.
        UnavailableError
            The store does not answer, or answers with another error.
        """
        try:
            connection = self._lent()
        except (RedisError, OSError) as error:
            raise unavailable(self._client, error) from error
        try:
            connection._sock.settimeout(connection.socket_timeout)  # the last call may have been in a hurry
            hurry(connection._sock)
            connection.send_packed_command([packed])
            replies = Replies(connection._sock)
            found = read(replies)
        except BaseException as error:
            connection.disconnect()  # what is left of the replies must not be read as another call's
            self._pool.release(connection)
            if isinstance(error, RedisError | OSError):
                raise unavailable(self._client, error) from error
            raise
        self._idle.append(connection)
        self._refuse(replies.error)
        return found

    def _lent(self) -> Any:
        """A connection that has nothing to read: one of ours, since lending is a tenth of a read, or the pool's."""
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()  # the parent's
        while self._idle:
            connection = self._idle.pop()
            if connection._sock is not None and not waits(connection._sock):
                return connection
            connection.disconnect()
            self._pool.release(connection)
        if is_hurried():
            raise UnreadyError
        return self._pool.get_connection()

    def _asked(self, cluster: Any, work: Callable[[], list[Any]]) -> list[Any]:
        try:
            replies = work()
        except (RedisError, RedisClusterException, OSError) as error:
            with suppress(RedisError, RedisClusterException, OSError):
                cluster.nodes_manager.initialize()  # the next call may find another node in the place of one that ended
            raise unavailable(self._client, error) from error
        self._refuse(next((reply for reply in replies if isinstance(reply, Exception)), None))
        return replies

    def _refuse(self, error: Exception | None) -> None:
        if isinstance(error, NoScriptError):
            raise error
        if error is not None:
            raise unavailable(self._client, error) from error
