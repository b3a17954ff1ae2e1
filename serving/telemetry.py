"""What one server process tells of itself: Prometheus metrics, and traces where they are wanted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from headwater.errors import HeadwaterError, UnavailableError
from headwater.log import get_logger
from headwater.online.reader import ViewRead
from serving.freshness import Freshness
from serving.guard import LateError
from serving.scores import Scores
from serving.tracing import Tracing

log = get_logger("serving")
_QUIET_S = 10.0
_BUCKETS = (
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.025,
    0.05,
    0.1,
    0.15,
    0.2,
    0.25,
    0.5,
    1.0,
    5.0,
)


class _Timed:
    """Observes what its body takes; a generator would take as long as some of the stages."""

    __slots__ = ("_seconds", "_started")

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds.observe(time.perf_counter() - self._started)


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


class Telemetry:
    """Owns its registry, so that two servers in one test process do not share counts."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.tracing = tracing
        self.registry = CollectorRegistry()
        self._quiet_until: dict[str, float] = {}
        self._calls = Counter("headwater_calls", "gRPC calls answered.", ["method", "code"], registry=self.registry)
        self._call_seconds = Histogram(
            "headwater_call_seconds", "Time to answer a gRPC call.", ["method"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "headwater_stage_seconds", "Time in one stage of the funnel.", ["stage"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._stage = cache(self._stage_seconds.labels)
        self._degraded = Counter(
            "headwater_degraded", "Replies in which a stage was replaced by its fallback, and why: late, down, failed.",
            ["stage", "reason"], registry=self.registry,
        )  # fmt: skip
        self._impressions = Counter(
            "headwater_impressions", "Impressions: logged, spilled, dropped, failed.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self._removed = Counter(
            "headwater_removed", "Candidates by the filter that removed them.", ["filter"], registry=self.registry
        )
        self._freshness = Freshness()
        self.registry.register(self._freshness)
        self._scores = Scores()
        self.registry.register(self._scores)
        self._bundle = Gauge("headwater_bundle", "1 for the bundle that answers.", ["version"], registry=self.registry)
        self._share = Gauge(
            "headwater_variant_share", "Share of the users who see a variant, 0 to 1.", ["variant"],
            registry=self.registry,
        )  # fmt: skip
        self._refused = Gauge(
            "headwater_settings_refused", "1 while a change of surfaces, objectives or variants is not taken.",
            registry=self.registry,
        )  # fmt: skip
        self._shadow = Counter(
            "headwater_shadow", "Lists for the shadow to score: scored, failed, dropped, late.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip

    def call(self, method: str, code: str, seconds: float) -> None:
        """Count one answered call."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Time a stage, also when it fails."""
        timed = _Timed(self._stage(name))
        return timed if self.tracing is None else _both(timed, self.tracing.stage(name))

    def degraded(self, stage: str, error: Exception) -> None:
        """Count a fallback; its cause is logged at most once in ten seconds a stage."""
        self._degraded.labels(stage, _reason(error)).inc()
        now = time.monotonic()
        if now >= self._quiet_until.get(stage, 0.0):
            self._quiet_until[stage] = now + _QUIET_S
            known = isinstance(error, HeadwaterError)
            log.warning("degraded", stage=stage, reason=str(error), exc_info=None if known else error)

    def removed(self, names: Sequence[str], by: NDArray[np.int16]) -> None:
        """Count candidates that a filter removed, by its number (n,), -1 for none."""
        for name, count in zip(names, np.bincount(by + 1, minlength=len(names) + 1)[1:].tolist(), strict=True):
            if count:
                self._removed.labels(name).inc(count)

    def features(self, reads: Mapping[str, ViewRead]) -> None:
        """Count what a request has read of the online store: ages by view, values and nulls by feature."""
        self._freshness.observe(reads)

    def listed(self, surface: str, variant: str, scores: NDArray[np.float32]) -> None:
        """Count a list and its candidates' scores (n,)."""
        self._scores.observe(surface, variant, scores)

    def shadow(self, outcome: str, lists: int = 1) -> None:
        """Count lists that were meant for the shadow."""
        if lists:
            self._shadow.labels(outcome).inc(lists)

    def shares(self, percents: Mapping[str, float]) -> None:
        """Tell which variants there are from now on."""
        self._share.clear()
        for variant, percent in percents.items():
            self._share.labels(variant).set(percent / 100)

    def settings(self, refused: bool) -> None:
        """Tell whether the files that people change are in force as they are."""
        self._refused.set(refused)

    def impression(self, outcome: str) -> None:
        """Count an impression."""
        self._impressions.labels(outcome).inc()

    def impressions(self, outcome: str) -> int:
        """Impressions so far with this outcome."""
        return int(self._impressions.labels(outcome)._value.get())

    def bundle(self, version: str) -> None:
        """Name the bundle that answers from now on."""
        self._bundle.clear()
        self._bundle.labels(version).set(1)


def _reason(error: Exception) -> str:
    if isinstance(error, LateError):
        return "late"
    return "down" if isinstance(error, UnavailableError) else "failed"
