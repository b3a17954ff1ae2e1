"""The metrics of all workers on one page, each under its number."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

WORKER = "worker"


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
