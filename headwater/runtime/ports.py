"""Loopback ports: which are free, and who has the others."""

import random
import socket
import time
from contextlib import suppress

import psutil

_FIRST, _END = 10_000, 32_768
"""Below what systems lend to clients: a server that is started again must find its port, and no client on it."""
_DRAW = random.SystemRandom()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on just now, and that no client is given meanwhile."""
    drawn = iter(lambda: _DRAW.randrange(_FIRST, _END), None)
    return next(port for port in drawn if not is_taken(host, port))


def is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def comes_free(host: str, port: int, patience_s: float = 5.0) -> bool:
    """Whether a server can listen there, now or soon: what is killed keeps its ports until its last thread is gone.

    Till then the system names nobody who has them; a port with a named holder is not waited for.
    """
    deadline = time.monotonic() + patience_s
    while is_taken(host, port):
        if time.monotonic() > deadline or _named_holder(port):
            return False
        time.sleep(0.05)
    return True


def answers(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def holder(port: int) -> str:
    """Name the process that listens on a port, as far as the system tells."""
    return _named_holder(port) or "another process"


def next_free(host: str, port: int) -> int:
    """Return the first free port from ``port`` on."""
    return next((candidate for candidate in range(port, port + 100) if not is_taken(host, candidate)), free_port(host))


def _named_holder(port: int) -> str | None:
    with suppress(psutil.Error, PermissionError):
        for connection in psutil.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None
