"""OpenTelemetry traces: a span a call, one a stage, sent by OTLP over HTTP where ``HEADWATER_OTLP`` says.

The caller's trace goes on where the call's metadata has a ``traceparent`` (W3C Trace Context). What share of the others
is traced is said by OpenTelemetry's own ``OTEL_TRACES_SAMPLER`` and ``OTEL_TRACES_SAMPLER_ARG``. The SDK is imported
only where traces are wanted.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from headwater.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "headwater-serving"
FAILURES = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes by which the server has failed, and not the caller."""


class Tracing:
    """Makes spans by one provider; ``close`` sends what is left."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("headwater.serving")

    def stage(self, name: str) -> AbstractContextManager["Span"]:
        """A span in that of the call; what is raised in it is recorded."""
        return self._tracer.start_as_current_span(name)

    @contextmanager
    def call(self, method: str, request_id: str, metadata: Mapping[str, str]) -> Iterator["Span"]:
        """The span of a call, in the caller's trace if its metadata names one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        service, _, name = method.strip("/").rpartition("/")
        told = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "headwater.request_id": request_id}
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            context=TraceContextTextMapPropagator().extract(metadata),
            kind=SpanKind.SERVER,
            attributes=told,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.shutdown()


def ended(span: "Span | None", code: Any) -> None:
    """Say of a call how it ended; ``code`` is gRPC's."""
    if span is None:
        return
    from opentelemetry.trace import StatusCode

    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code.name in FAILURES:
        span.set_status(StatusCode.ERROR, code.name)


def tracing_to(endpoint: str | None) -> Tracing | None:
    """Traces for a collector such as ``http://collector:4318``, ``None`` without one.

    Raises
    ------
    ConfigError
        It is no HTTP address.
    """
    if endpoint is None:
        return None
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(f"HEADWATER_OTLP: {endpoint!r} is no HTTP address. Write one such as http://collector:4318.")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}))
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
