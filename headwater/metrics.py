"""The page that Prometheus reads."""

from typing import Literal

from prometheus_client import CollectorRegistry, start_http_server

from headwater.errors import ResourceError
from headwater.settings import Settings


def expose(
    settings: Settings, registry: CollectorRegistry, port: Literal["metrics_port", "stream_metrics_port"]
) -> None:
    """Answer on the port of that setting, in threads of its own.

    Raises
    ------
    ResourceError
        The port is taken.
    """
    number = getattr(settings, port)
    try:
        start_http_server(number, addr=settings.host, registry=registry)
    except OSError:
        raise ResourceError(
            f"{port}: {settings.host}:{number} is taken. End what listens there, or set HEADWATER_{port.upper()} to a "
            "free port."
        ) from None
