"""Loopback ports: which are free, and who has the others."""

import random
import socket
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


def answers(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def holder(port: int) -> str:
    """Name the process that listens on a port, as far as the system tells."""
    with suppress(psutil.Error, PermissionError):
        for connection in psutil.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def next_free(host: str, port: int) -> int:
    """Return the first free port from ``port`` on."""
    return next((candidate for candidate in range(port, port + 100) if not is_taken(host, candidate)), free_port(host))
