"""How old and how complete the features are that requests read: Prometheus metrics of what the online reader returns.

    headwater_feature_age_seconds{view}             now - newest event of an entity the view has seen
    headwater_feature_values_total{view, feature}   values read, of distinct entities
    headwater_feature_nulls_total{view, feature}    those without a value: a null, or an entity not found

A request reads tens of features of hundreds of entities, so they are counted together, in numpy, into arrays that are
made metrics of when Prometheus asks.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from headwater.online.reader import Values, ViewRead

MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
BUCKETS_S = (
    1, 10, MINUTE_S, 5 * MINUTE_S, 15 * MINUTE_S, HOUR_S, 6 * HOUR_S, DAY_S, 3 * DAY_S, 7 * DAY_S, 14 * DAY_S,
    30 * DAY_S, 90 * DAY_S, 365 * DAY_S,
)  # fmt: skip
_WIDTH = len(BUCKETS_S) + 1
_BOUNDS_MS = np.array(BUCKETS_S, np.int64) * 1000
Shape = tuple[tuple[str, tuple[str, ...]], ...]
"""Views and their features, in order."""


@dataclass(frozen=True)
class _Counts:
    """Of one combination of views: ``values, nulls`` (n_features,), ``ages`` (n_views, n_buckets), ``age_ms``."""

    shape: Shape
    values: NDArray[np.int64]
    nulls: NDArray[np.int64]
    ages: NDArray[np.int64]
    age_ms: NDArray[np.int64]

    @classmethod
    def of(cls, shape: Shape) -> "_Counts":
        features, views = sum(len(names) for _, names in shape), len(shape)
        sizes = (features, features, (views, _WIDTH), views)
        return cls(shape, *(np.zeros(size, np.int64) for size in sizes))


class Freshness:
    """A collector of the metrics above; safe to be told from several threads."""

    def __init__(self) -> None:
        self._counts: dict[Shape, _Counts] = {}
        self._lock = threading.Lock()

    def observe(self, reads: Mapping[str, ViewRead]) -> None:
        """Count what one request has read."""
        if not reads:
            return
        shape = tuple((view, tuple(read.values)) for view, read in reads.items())
        sizes, nulls = _nulls(reads)
        ages, age_ms = _ages(reads)
        with self._lock:
            if (held := self._counts.get(shape)) is None:
                held = self._counts[shape] = _Counts.of(shape)
            for total, more in ((held.values, sizes), (held.nulls, nulls), (held.ages, ages), (held.age_ms, age_ms)):
                total += more

    def describe(self) -> list[Metric]:
        """Register without being asked for values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand."""
        values = CounterMetricFamily("headwater_feature_values", "Values read.", labels=("view", "feature"))
        nulls = CounterMetricFamily("headwater_feature_nulls", "Of these without a value.", labels=("view", "feature"))
        age = HistogramMetricFamily(
            "headwater_feature_age_seconds", "Since an entity's newest event.", labels=("view",)
        )
        with self._lock:
            features, views = self._by_feature(), self._by_view()
        for labels, (read, empty) in features.items():
            values.add_metric(labels, read)
            nulls.add_metric(labels, empty)
        bounds = [*map(str, map(float, BUCKETS_S)), "+Inf"]
        for view, (counts, total_ms) in views.items():
            age.add_metric((view,), list(zip(bounds, np.cumsum(counts).tolist(), strict=True)), total_ms / 1000)
        yield from (values, nulls, age)

    def _by_feature(self) -> dict[tuple[str, str], NDArray[np.int64]]:
        found: dict[tuple[str, str], NDArray[np.int64]] = {}
        for held in self._counts.values():
            names = [(view, feature) for view, features in held.shape for feature in features]
            for name, both in zip(names, np.stack([held.values, held.nulls], axis=1), strict=True):
                found[name] = found.get(name, 0) + both
        return found

    def _by_view(self) -> dict[str, tuple[NDArray[np.int64], int]]:
        found: dict[str, tuple[NDArray[np.int64], int]] = {}
        for held in self._counts.values():
            for (view, _), counts, total_ms in zip(held.shape, held.ages, held.age_ms.tolist(), strict=True):
                before, before_ms = found.get(view, (np.zeros_like(counts), 0))
                found[view] = before + counts, before_ms + total_ms
        return found


def _nulls(reads: Mapping[str, ViewRead]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values and nulls of each feature, (n_features,)."""
    columns = [_floats(values) for read in reads.values() for values in read.values.values()]
    sizes = np.array([len(column) for column in columns], np.int64)
    before = np.append(0, np.cumsum(np.isnan(np.concatenate(columns))))  # nulls before each value, and in all
    return sizes, np.diff(before[np.append(0, np.cumsum(sizes))])


def _floats(values: Values) -> NDArray[np.float64]:
    return np.array([np.nan if held is None else 0.0 for held in values]) if isinstance(values, list) else values


def _ages(reads: Mapping[str, ViewRead]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Histogram of each view's ages (n_views, n_buckets) and their sum in ms (n_views,)."""
    views, found = len(reads), np.concatenate([read.found for read in reads.values()])
    view = np.repeat(np.arange(views), [len(read.found) for read in reads.values()])[found]
    age_ms = np.concatenate([read.at - read.newest for read in reads.values()])[found]
    places = view * _WIDTH + np.searchsorted(_BOUNDS_MS, age_ms)
    counts = np.bincount(places, minlength=views * _WIDTH).reshape(views, _WIDTH)
    return counts, np.bincount(view, weights=age_ms, minlength=views).astype(np.int64)
