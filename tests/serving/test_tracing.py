"""Traces: a span a call in the caller's trace, one a stage in it, sent by OTLP; none where none are wanted."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from headwater.errors import ConfigError
from headwater.log import configure_logging, get_logger
from headwater.settings import addresses
from serving import run, telemetry
from serving.proto.headwater.v1 import recommendation_pb2, recommendation_pb2_grpc
from serving.server import Parts, Server
from serving.telemetry import Telemetry
from serving.tracing import Tracing, tracing_to
from serving.tracking import KafkaLog

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def ask(settings, clock, promote, funnel):
    """``ask(telemetry, user, **metadata)`` gets a list from a server that has no store."""
    running = []

    def call(told, user, **metadata):
        if not running:
            promote("v1")
            gone = redis.Redis(port=1)
            parts = Parts(gone, clock, KafkaLog("127.0.0.1:1"), told, lambda plan, folder: funnel(gone, telemetry=told))
            running.append(Server(settings, parts))
            running[0].start()
        with grpc.insecure_channel(addresses(settings).grpc) as channel:
            stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
            request = recommendation_pb2.RecommendRequest(user_id=user)
            return stub.Recommend(request, timeout=30, metadata=tuple(metadata.items()))

    yield call
    for server in running:
        server.close()


def test_a_call_and_its_stages_are_spans_of_the_callers_trace(ask):
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    reply = ask(Telemetry(Tracing(provider)), "u1", traceparent=f"00-{TRACE}-{PARENT}-01")
    *stages, call = kept.get_finished_spans()
    assert (call.name, call.kind) == ("headwater.v1.RecommendationService/Recommend", SpanKind.SERVER)
    assert format(call.context.trace_id, "032x") == TRACE
    assert format(call.parent.span_id, "016x") == PARENT
    assert call.attributes["headwater.request_id"] == reply.request_id
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert call.status.status_code is StatusCode.UNSET
    assert {span.parent.span_id for span in stages} == {call.context.span_id}
    told = {span.name: span.status.status_code for span in stages}
    assert {"user_state", "source.two_tower", "hydrate", "rerank"} <= set(told)
    assert told["hydrate"] is StatusCode.ERROR  # there is no store
    assert told["rerank"] is StatusCode.UNSET


def test_a_call_without_a_trace_begins_one_and_a_refusal_is_no_failure_of_the_server(ask):
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with pytest.raises(grpc.RpcError) as refused:
        ask(Telemetry(Tracing(provider)), "")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (call,) = kept.get_finished_spans()
    assert call.parent is None
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert call.status.status_code is StatusCode.UNSET


def test_what_is_logged_of_a_call_has_its_request_id(ask, capsys, monkeypatch):
    configure_logging("info")
    monkeypatch.setattr(telemetry, "log", get_logger("serving"))
    reply = ask(Telemetry(), "u1")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert {line["request_id"] for line in lines if line["event"] == "degraded"} == {reply.request_id}
    assert run.request_id() != run.request_id()  # outside of a call each has its own


@pytest.fixture
def collector():
    """An OTLP collector that keeps what it gets."""
    got = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Keep)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def test_spans_reach_a_collector(ask, collector):
    address, got = collector
    tracing = tracing_to(address)
    ask(Telemetry(tracing), "u1")
    tracing.close()
    assert {path for path, _ in got} == {"/v1/traces"}
    batches = [ExportTraceServiceRequest.FromString(body) for _, body in got]
    (resource,) = {
        one.value.string_value for batch in batches for held in batch.resource_spans
        for one in held.resource.attributes if one.key == "service.name"
    }  # fmt: skip
    names = {
        span.name for batch in batches for held in batch.resource_spans for scope in held.scope_spans
        for span in scope.spans
    }  # fmt: skip
    assert resource == "headwater-serving"
    assert {"headwater.v1.RecommendationService/Recommend", "rerank"} <= names


def test_without_an_address_there_are_no_traces_and_a_wrong_one_is_named():
    assert tracing_to(None) is None
    with pytest.raises(ConfigError, match="HEADWATER_OTLP: 'collector:4318'"):
        tracing_to("collector:4318")
