"""The page that Prometheus reads: one process's own metrics, or those of all workers, each under its number."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from headwater.errors import ResourceError
from headwater.settings import Settings

WORKER = "worker"


def expose(settings: Settings, registry: CollectorRegistry) -> None:
    """Answer on the metrics port, in threads of its own.

    Raises
    ------
    ResourceError
        The port is taken.
    """
    try:
        start_http_server(settings.metrics_port, addr=settings.host, registry=registry)
    except OSError:
        raise ResourceError(
            f"metrics_port: {settings.host}:{settings.metrics_port} is taken. End what listens there, or set "
            "HEADWATER_METRICS_PORT to a free port."
        ) from None


class Gathered:
    """A collector of several processes' pages: every sample, with the label ``worker`` beside its own.

    Parameters
    ----------
    pages
        Text by the worker's number, of those that answer, as of now.
    """

    def __init__(self, pages: Callable[[], Mapping[int, str]]) -> None:
        self._pages = pages

    def describe(self) -> list[Metric]:
        """Register without being asked for values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand."""
        families: dict[str, Metric] = {}
        for number, page in self._pages().items():
            for family in text_string_to_metric_families(page):
                held = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                held.samples += [
                    one._replace(labels={**one.labels, WORKER: str(number)}) for one in family.samples
                ]  # fmt: skip
        yield from families.values()
