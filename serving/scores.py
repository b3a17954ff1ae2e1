"""Lists made and how their candidates were scored: Prometheus metrics by surface and variant.

    headwater_lists_total{surface, variant}   lists made
    headwater_score{surface, variant}         probability, or worth, of each candidate that was ranked

A request ranks hundreds of candidates, so they are counted together, in numpy, as the features are
(:mod:`serving.freshness`).
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from serving.ports import Floats

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_BOUNDS = np.array(BUCKETS)
_LABELS = ("surface", "variant")


@dataclass
class _Counts:
    lists: int = 0
    scores: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BUCKETS) + 1, np.int64))
    total: float = 0.0


class Scores:
    """A collector of the metrics above; safe to be told from several threads."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Counts] = {}
        self._lock = threading.Lock()

    def observe(self, surface: str, variant: str, scores: Floats) -> None:
        """Count one list and its candidates' scores (n,)."""
        wide = scores.astype(np.float64)
        counts = np.bincount(np.searchsorted(_BOUNDS, wide), minlength=len(BUCKETS) + 1)
        total = float(wide.sum())
        with self._lock:
            held = self._counts.setdefault((surface, variant), _Counts())
            held.lists += 1
            held.scores += counts
            held.total += total

    def describe(self) -> list[Metric]:
        """Register without being asked for values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand."""
        lists = CounterMetricFamily("headwater_lists", "Lists made.", labels=_LABELS)
        scores = HistogramMetricFamily("headwater_score", "Scores of the candidates ranked.", labels=_LABELS)
        bounds = [*map(str, BUCKETS), "+Inf"]
        with self._lock:
            for labels, held in self._counts.items():
                lists.add_metric(labels, held.lists)
                scores.add_metric(labels, list(zip(bounds, np.cumsum(held.scores).tolist(), strict=True)), held.total)
        yield from (lists, scores)
