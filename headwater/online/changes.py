"""Which keys of the store have changed, told by the store itself: server-assisted client-side caching of Redis.

``CLIENT TRACKING ON BCAST PREFIX p`` has the server send the name of every key that begins with ``p`` and is written or
deleted, whoever does it: the stream, a backfill, ``feast materialize``, ``headwater forget``. The server keeps nothing
for it. Messages come over one connection; where that breaks, all keys may have changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
import redis

from headwater.errors import UnavailableError
from headwater.online.connect import Store, unavailable
from headwater.online.wire import pack

_CHUNK = 1 << 16


class Changes:
    """Names of changed keys, over a connection of its own."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reader = hiredis.Reader()
        self._keys: set[bytes] = set()
        self._all = False

    @classmethod
    @contextmanager
    def of(cls, client: redis.Redis, prefix: bytes) -> Iterator["Changes"]:
        """Begin to be told of keys with a prefix, of one server.

        Raises
        ------
        UnavailableError
            The store does not answer, or does not know how; also from then on. A cluster is not listened to.
        """
        if isinstance(client, Store) and client.as_cluster is not None:
            raise UnavailableError("online store: it is a cluster, of which each node would have to tell what changes.")
        pool = client.connection_pool
        connection = pool.connection_class(**{**pool.connection_kwargs, "protocol": 3})
        try:
            connection.connect()
            changes = cls(connection)
            changes._ask(b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", prefix)
            yield changes
        except (redis.RedisError, hiredis.HiredisError, OSError) as error:
            raise error if isinstance(error, UnavailableError) else unavailable(client, error) from error
        finally:
            connection.disconnect()

    def take(self) -> set[bytes] | None:
        """Every key that was changed before the call, and since the last one; ``None`` where it may be any key."""
        # What is sent of a turn of the server's loop follows the replies of that turn: the second reply is of a later.
        self._ask(b"PING")
        self._ask(b"PING")
        keys, self._keys = self._keys, set()
        everything, self._all = self._all, False
        return None if everything else keys

    def _ask(self, *command: bytes) -> None:
        self._connection._sock.sendall(pack(command))
        while True:
            reply = self._reader.gets()
            if reply is False:
                received = self._connection._sock.recv(_CHUNK)
                if not received:
                    raise redis.ConnectionError("the connection was closed")
                self._reader.feed(received)
            elif isinstance(reply, hiredis.PushNotification):
                self._note(reply)
            elif isinstance(reply, hiredis.ReplyError):
                raise redis.ResponseError(str(reply))
            else:
                return

    def _note(self, told: Any) -> None:
        if told[0] == b"invalidate" and told[1] is None:
            self._all = True
        elif told[0] == b"invalidate":
            self._keys.update(told[1])
