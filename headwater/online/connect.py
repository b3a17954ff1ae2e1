"""The one way to the online store: a URL becomes a client, of one server or of all nodes of a cluster."""

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.cluster import REDIS_ALLOWED_KEYS, RedisCluster
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError

from headwater.errors import UnavailableError
from headwater.settings import shown_url

_TIMEOUTS = {"socket_connect_timeout": 5.0, "socket_timeout": 30.0}
_until: ContextVar[float | None] = ContextVar("until", default=None)


class StoreUnavailableError(UnavailableError, redis.ConnectionError):
    """The online store does not answer; it can be caught as ours and as the client's."""


class UnreadyError(Exception):
    """What is asked would take longer than a look at an open connection: nothing was sent."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Have what this thread asks of the store answered in so many seconds, or fail as where it does not answer.

    Raises
    ------
    UnreadyError
        There is no open connection, or the store is a cluster or not known to be none: that can take longer.
    """
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def hurry(source: socket.socket) -> None:
    """Let the connection wait for what is left of :func:`within`; outside of it, as it does."""
    if (until := _until.get()) is not None:
        source.settimeout(max(0.001, until - time.monotonic()))


def is_hurried() -> bool:
    """Whether this thread asks :func:`within` a time."""
    return _until.get() is not None


def unavailable(client: redis.Redis, error: BaseException) -> StoreUnavailableError:
    """Say where the store should be, why it does not answer, and the next step; never a password."""
    where = client.connection_pool.connection_kwargs
    address = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
    return StoreUnavailableError(f"online store at {address}: {_reason(error)}")


def connect(url: str, **options: Any) -> "Store":
    """Open a client; nothing is sent before its first command.

    Parameters
    ----------
    url
        ``redis://``, ``rediss://`` (TLS) or ``unix://``, of a server or of any node of a cluster.
    options
        Of redis-py's ``Connection``, such as ``socket_timeout`` in seconds; those in the URL's query come first.

    Raises
    ------
    ConfigError
        It is no such URL.
    """
    shown_url(url)
    options = {**_TIMEOUTS, **options}
    if url.startswith("rediss://") and "ssl_cert_reqs=none" not in urlsplit(url).query:
        options = {"ssl_check_hostname": True, **options}
    return Store(url, **options)


def waits(source: socket.socket) -> bool:
    """Whether bytes have arrived, or the end of them."""
    if isinstance(source, ssl.SSLSocket) and source.pending():
        return True
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(0))


class Store(redis.Redis):
    """Client whose commands, one at a time, go to the one server or to the node of a cluster that holds their key.

    Which of the two it is, is asked before the first command. Pipelines and subscriptions are the one server's alone.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(connection_pool=redis.ConnectionPool.from_url(url, **options))
        self.auto_close_connection_pool = True
        self._url, self._options = url, options
        self._asked = False
        self._cluster: Any = None  # redis-py's cluster client is untyped
        self._asking = threading.Lock()

    @property
    def is_one_server(self) -> bool:
        """Whether it is known to be no cluster."""
        return self._asked and self._cluster is None

    @property
    def as_cluster(self) -> Any:
        """The ``RedisCluster`` that it is, ``None`` where there is one server.

        Raises
        ------
        StoreUnavailableError
            The store does not answer.
        """
        if not self._asked:
            with self._asking:
                if not self._asked:
                    self._cluster, self._asked = self._find_cluster(), True
        return self._cluster

    def execute_command(self, *args: Any, **options: Any) -> Any:
        cluster = self.as_cluster
        send = super().execute_command if cluster is None else cluster.execute_command
        try:
            return send(*args, **options)
        except (redis.ConnectionError, redis.TimeoutError, RedisClusterException, OSError) as error:
            raise unavailable(self, error) from error

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        cluster = self.as_cluster
        found: Iterator[Any] = (super().scan_iter if cluster is None else cluster.scan_iter)(*args, **options)
        return found

    def close(self) -> None:
        super().close()
        if (cluster := getattr(self, "_cluster", None)) is not None:
            cluster.close()

    def _find_cluster(self) -> Any:
        try:
            told: Any = super().execute_command("INFO", "cluster")  # type: ignore[no-untyped-call]  # redis-py's
            if not told.get("cluster_enabled"):
                return None
            given = self.connection_pool.connection_kwargs
            # RedisCluster hands only some options on to its nodes; without the others TLS would check less than asked.
            others = {name: value for name, value in given.items() if name not in REDIS_ALLOWED_KEYS}
            pool = partial(redis.ConnectionPool, **others)
            return RedisCluster(url=self._url, connection_pool_class=pool, **self._options)
        except (RedisError, RedisClusterException, OSError) as error:
            raise unavailable(self, error) from error
        except IndexError as error:  # redis-py takes the first of the nodes that hold slots
            raise unavailable(self, RedisClusterException("no node of the cluster holds a slot")) from error


def _reason(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, AuthenticationError):
            return (
                f"it refuses the user name or password ({cause}). "
                "Put the right ones into HEADWATER_REDIS, as in redis://user:password@host:port."
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}). Name the authority that signed it with "
                "?ssl_ca_certs=FILE in HEADWATER_REDIS, and the server by a name that the certificate has."
            )
    return f"{error}. Start it with headwater up, or point HEADWATER_REDIS at one that runs."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
