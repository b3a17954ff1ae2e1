"""Hostile requests over gRPC: each gets a clear status, none learns of the inside, and the server answers afterwards.

``HEADWATER_FUZZ=100000`` sends so many of them instead of 1,000.
"""

import os
from concurrent.futures import Future
from functools import partial

import grpc
import pytest
import redis
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, event, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater.settings import addresses
from serving.client import Client
from serving.proto.headwater.v1 import event_pb2, feature_pb2, recommendation_pb2
from serving.server import MAX_MESSAGE_BYTES, Parts, Server
from serving.telemetry import Telemetry

REQUESTS, SPOILT = int(os.environ.get("HEADWATER_FUZZ", "1000")), 9
"""How many are sent, and how often one message's bytes are spoilt, since to draw a message takes longer than a call."""
CLEAR = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "NOT_FOUND"}
INSIDE = ("Traceback", 'File "', "site-packages", ".py", "headwater/", "serving/", "Exception")
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (recommendation_pb2, event_pb2, feature_pb2, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
NOWHERE = ["/", "/headwater.v1.RecommendationService/Nothing", "/headwater.v2.RecommendationService/Recommend"]
texts = st.one_of(
    st.sampled_from(["", "u1", "i5", "home", "discover", "recommend", "user_state", "user_id", "item_id", "category"]),
    st.text(max_size=40), st.text("\0\n\x7f../%s{}$(';\u202e\U0001f600", max_size=20), st.text("a", min_size=5000),
)  # fmt: skip
integers = {
    FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63,
    FieldDescriptor.TYPE_UINT32: 32, FieldDescriptor.TYPE_UINT64: 64,
}  # fmt: skip


def numbers(kind):
    most, least = 2 ** integers[kind] - 1, -(2 ** integers[kind]) if integers[kind] % 2 else 0
    return st.one_of(st.sampled_from([least, 0, 1, 1000, 1001, most]), st.integers(least, most))


def value_of(field):
    if field.message_type is not None:
        return messages(field.message_type)
    if field.type in integers:
        return numbers(field.type)
    return {
        FieldDescriptor.TYPE_STRING: texts, FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
        FieldDescriptor.TYPE_DOUBLE: st.floats(), FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
        FieldDescriptor.TYPE_BOOL: st.booleans(),
    }[field.type]  # fmt: skip


def field_of(field):
    if field.label != FieldDescriptor.LABEL_REPEATED:
        return value_of(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(value_of(entry["key"]), value_of(entry["value"]), max_size=4)
    return st.lists(value_of(field), max_size=6)


def messages(kind):
    """Any message of a descriptor, with any of its fields."""
    return st.fixed_dictionaries({}, optional={field.name: field_of(field) for field in kind.fields}).map(
        partial(_made, GetMessageClass(kind))
    )


def _made(make, fields):
    """Of several fields of one ``oneof`` the last stays."""
    return make(**fields)


def spoilt(raw):
    """The bytes cut short, with one of them changed, or followed by a field that nobody knows."""
    return st.one_of(
        st.integers(0, len(raw)).map(lambda at: raw[:at]),
        st.tuples(st.integers(0, max(0, len(raw) - 1)), st.binary(min_size=1, max_size=1)).map(
            lambda change: raw[: change[0]] + change[1] + raw[change[0] + 1 :]
        ),
        st.binary(max_size=20).map(lambda tail: raw + b"\xfa\x7f" + bytes([len(tail)]) + tail),
    )


@st.composite
def calls(draw):
    """A method's path, and what is sent to it: each time messages, of which the first is well-formed."""
    path = draw(st.sampled_from([*METHODS, *METHODS, *NOWHERE]))
    sane = messages(METHODS[path].input_type) if path in METHODS else st.just(health_pb2.HealthCheckRequest())
    raw = draw(sane).SerializeToString()
    others = draw(st.lists(st.one_of(spoilt(raw), st.binary(max_size=200)), min_size=SPOILT, max_size=SPOILT))
    if path in METHODS and METHODS[path].client_streaming:
        return path, [[], *([raw] * at + [other] for at, other in enumerate(others))]
    return path, [[one] for one in (raw, *others)]


class Swallows:
    """A log that takes everything."""

    def append(self, topic, key, value, timestamp_ms):
        done = Future()
        done.set_result(None)
        return done

    def close(self):
        pass


@pytest.fixture
def call(settings, clock, funnel, valkey, valkey_client, put, promote):
    """``call(path, messages)``: the status and its details; once all is over, the server must answer as before."""
    put(valkey_client, "user_item", {("u1", "i5"): 2})
    promote("v1")
    store = redis.Redis.from_url(valkey)
    server = Server(settings, Parts(store, clock, Swallows(), Telemetry(), lambda plan, folder: funnel(store)))
    server.start()
    with grpc.insecure_channel(addresses(settings).grpc) as channel:
        yield partial(_call, channel)
    with Client(addresses(settings).grpc) as client:
        assert len(client.recommend("u1").items) == 10
    server.close()


def _call(channel, path, raw):
    method = METHODS.get(path)
    streams, answers = (False, False) if method is None else (method.client_streaming, method.server_streaming)
    kind = f"{'stream' if streams else 'unary'}_{'stream' if answers else 'unary'}"
    ask = getattr(channel, kind)(path)
    try:
        reply = ask(iter(raw) if streams else raw[0], timeout=30)
        if answers:
            next(iter(reply), None)
            reply.cancel()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


@pytest.mark.integration
@given(asked=calls())
@tries(
    max_examples=max(1, REQUESTS // (1 + SPOILT)), deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
def test_no_request_breaks_the_server_or_learns_of_its_inside(call, asked):
    path, sent = asked
    for raw in sent:
        code, details = call(path, raw)
        event(code)
        assert code in CLEAR, (path, raw, code, details)
        assert not any(part in details for part in INSIDE), details


@pytest.mark.integration
@pytest.mark.parametrize("path", [path for path, method in METHODS.items()])
def test_bytes_that_are_no_message_are_the_caller_s_mistake(call, path):
    code, details = call(path, [b"\xff\xff\xff"])
    assert code == "INVALID_ARGUMENT"
    assert path.rpartition("/")[2] in details


@pytest.mark.integration
def test_what_is_too_much_is_refused(call):
    many = recommendation_pb2.RecommendRequest(user_id="u1", exclude_item_ids=["i"] * 10_001)
    huge = recommendation_pb2.RecommendRequest(user_id="u" * (MAX_MESSAGE_BYTES + 1))
    path = "/headwater.v1.RecommendationService/Recommend"
    assert call(path, [many.SerializeToString()])[0] == "INVALID_ARGUMENT"
    assert call(path, [huge.SerializeToString()])[0] == "RESOURCE_EXHAUSTED"
