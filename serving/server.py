"""The gRPC server: ``python -m serving.workers`` answers on loopback until it is told to end, then drains.

It loads neither Flink, Spark, torch nor feast: the plan is a manifest, the model a bundle of arrays.
"""

# mypy: allow-untyped-calls
# (grpc generates its stubs without types)

import gc
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import redis
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from headwater.clock import Clock, StoredClock
from headwater.errors import ResourceError
from headwater.events import EventLimits
from headwater.log import get_logger
from headwater.metrics import expose
from headwater.online.connect import connect as open_store
from headwater.online.reader import OnlineReader
from headwater.plan import FeaturePlan
from headwater.runtime.ready import mark_ready, ready_path
from headwater.settings import Settings, addresses
from serving import telemetry
from serving.contracts import Recommender
from serving.features import FeatureLookup
from serving.guard import Deadline, Guard
from serving.live import Live, Loaded
from serving.proto.headwater.v1 import (
    event_pb2,
    event_pb2_grpc,
    feature_pb2,
    feature_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
)
from serving.services import EventService, FeatureService, RecommendationService
from serving.status import Statuses
from serving.tracing import tracing_to
from serving.tracking import KafkaLog, Tracker
from serving.turns import Calls

log = get_logger("serving")
THREADS = 8
DRAIN_S = 10.0
CLOCK_S = 0.05
MAX_MESSAGE_BYTES = 1 << 20
RECOMMENDATIONS, EVENTS, FEATURES = (
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (recommendation_pb2, "RecommendationService"),
        (event_pb2, "EventService"),
        (feature_pb2, "FeatureService"),
    )
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Parts:
    """What a server is given; tests give it others."""

    store: redis.Redis
    clock: Clock
    kafka: KafkaLog
    telemetry: telemetry.Telemetry
    build: Callable[[FeaturePlan, Path], Recommender]
    close: Callable[[], None] = lambda: None
    arrivals: Callable[[], int] = lambda: 0


class Server:
    """A running server; ``close`` drains it."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._settings, self._parts = settings, parts
        self._health = health.HealthServicer()
        self.live = Live(settings, parts.build, self._swapped, parts.telemetry, parts.arrivals)
        self._calls = Calls(THREADS)
        self.grpc = grpc.server(
            self._calls,
            interceptors=[Statuses(parts.telemetry)],
            options=[
                ("grpc.so_reuseport", int(settings.serve_workers > 1)),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._register()
        self._listen()

    @property
    def registry(self) -> CollectorRegistry:
        """Of its metrics."""
        return self._parts.telemetry.registry

    def start(self) -> None:
        """Load what there is to load, then answer."""
        self._health.set(EVENTS, _SERVING)
        self._health.set(FEATURES, _SERVING)
        self._swapped(Loaded())
        self.live.start()
        self.grpc.start()
        log.info("serving", address=addresses(self._settings).grpc)

    def close(self) -> None:
        """Refuse new calls, answer those under way, send what is queued."""
        self._health.enter_graceful_shutdown()
        self.grpc.stop(DRAIN_S).wait()
        self.live.close()
        self._parts.close()
        self._parts.kafka.close()
        if self._parts.telemetry.tracing is not None:
            self._parts.telemetry.tracing.close()

    def _register(self) -> None:
        parts = self._parts
        tracker = Tracker(parts.kafka, parts.clock, EventLimits.of(self._settings))
        recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(
            RecommendationService(self.live, self._calls), self.grpc
        )
        event_pb2_grpc.add_EventServiceServicer_to_server(EventService(tracker), self.grpc)
        feature_pb2_grpc.add_FeatureServiceServicer_to_server(FeatureService(self._lookup), self.grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        names = (RECOMMENDATIONS, EVENTS, FEATURES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc)

    def _listen(self) -> None:
        address = addresses(self._settings).grpc
        try:
            self.grpc.add_insecure_port(address)
        except RuntimeError:
            raise ResourceError(
                f"grpc_port: {address} is taken. End what listens there, or set HEADWATER_GRPC_PORT to a free port."
            ) from None

    def _lookup(self) -> FeatureLookup:
        plan, parts = self.live.plan, self._parts
        return FeatureLookup(plan, OnlineReader(parts.store, plan, parts.clock), parts.clock, parts.telemetry)

    def _swapped(self, loaded: Loaded) -> None:
        ready = loaded.recommender is not None
        for name in ("", RECOMMENDATIONS):
            self._health.set(name, _SERVING if ready else _NOT_SERVING)
        if loaded.recommender is not None:
            self._parts.telemetry.bundle(loaded.recommender.version)


def connect(settings: Settings) -> redis.Redis:
    """Client of the online store that gives up soon, so that a reply degrades rather than waits."""
    return open_store(addresses(settings).redis, socket_connect_timeout=0.2, socket_timeout=0.5)


@dataclass(frozen=True)
class ClockStore:
    """What the clock asks of the store, several times a second while a request waits: never for long."""

    store: redis.Redis
    guard: Guard

    def get(self, key: bytes) -> Any:
        return self.guard.ask(lambda: self.store.get(key), Deadline.after(2 * CLOCK_S))


def serve(settings: Settings) -> None:
    """Answer until SIGTERM or Ctrl-C."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = opened(settings)
    expose(settings, server.registry, "metrics_port")
    server.start()
    mark_ready(settings, "serve", address=addresses(settings).grpc)
    ended.wait()
    ready_path(settings, "serve").unlink(missing_ok=True)
    server.close()
    log.info("drained")


def opened(settings: Settings, worker: int = 0) -> Server:
    """A server of the real parts that has its port and does not answer yet; ``worker`` is its number among several."""
    made = Server(settings, production(settings, telemetry.Telemetry(tracing_to(settings.otlp)), worker))
    gc.freeze()  # nearly half a million objects are what was imported, and a collection that looks at them takes 0.26 s
    return made


def production(settings: Settings, measured: telemetry.Telemetry, worker: int = 0) -> Parts:
    """The real parts."""
    from serving.arrivals import Arrivals
    from serving.build import Builder
    from serving.impressions import ImpressionLog
    from serving.spill import spill_of

    store, guard = connect(settings), Guard("online store")
    clock = StoredClock(ClockStore(store, guard))
    kafka = KafkaLog(addresses(settings).kafka)
    spill = spill_of(settings.state_dir / "serve", settings.grpc_port, worker, settings.serve_workers)
    impressions = ImpressionLog(kafka, measured, spill=spill)
    arrivals = Arrivals(addresses(settings).kafka)
    builder = Builder(store, clock, impressions, measured, guard, run_dir=settings.run_dir, arrivals=arrivals)

    def close() -> None:
        arrivals.close()
        impressions.close()

    return Parts(store, clock, kafka, measured, builder.build_warm, close, arrivals.version)
