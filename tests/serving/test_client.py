"""Both clients: the same methods, calls sent again while there is time, errors by who can mend them."""

import asyncio
import inspect
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from headwater.errors import DataError, UnavailableError
from headwater.events import Event
from headwater.runtime.ports import free_port
from serving import calls
from serving.client import AsyncClient, Client
from serving.proto.headwater.v1 import (
    event_pb2,
    event_pb2_grpc,
    feature_pb2,
    feature_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
)

METHODS = ("recommend", "search", "similar", "explain", "track", "track_many", "features")


class Flaky(
    recommendation_pb2_grpc.RecommendationServiceServicer,
    event_pb2_grpc.EventServiceServicer,
    feature_pb2_grpc.FeatureServiceServicer,
):
    """Refuses the first calls with a code, then answers; ``asked`` has the instant of each."""

    def __init__(self):
        self.asked, self.refuse, self.code, self.trailing = [], 0, grpc.StatusCode.UNAVAILABLE, ()

    def _answer(self, reply, context):
        self.asked.append(time.monotonic())
        if len(self.asked) <= self.refuse:
            context.set_trailing_metadata(self.trailing)
            context.abort(self.code, "not now")
        return reply

    def Recommend(self, request, context):
        reply = recommendation_pb2.RecommendReply(request_id=request.user_id, bundle_version="v1", variant="varied")
        return self._answer(reply, context)

    def Track(self, request, context):
        return self._answer(event_pb2.TrackReply(ingest_time=7), context)

    def TrackStream(self, requests, context):
        return self._answer(event_pb2.TrackStreamReply(accepted=sum(1 for _ in requests)), context)

    def GetFeatures(self, request, context):
        return self._answer(feature_pb2.GetFeaturesReply(at=5, found=True), context)


@pytest.fixture
def flaky():
    server, made = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)]), Flaky()
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(made, server)
    event_pb2_grpc.add_EventServiceServicer_to_server(made, server)
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made
    server.stop(0)


def waiting(address, method, *args, timeout_s=20.0, **kwargs):
    with Client(address, timeout_s) as client:
        return getattr(client, method)(*args, **kwargs)


def awaiting(address, method, *args, timeout_s=20.0, **kwargs):
    async def ask():
        async with AsyncClient(address, timeout_s) as client:
            return await getattr(client, method)(*args, **kwargs)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [waiting, awaiting])


@both
def test_a_call_that_finds_nobody_is_sent_again_after_pauses(flaky, ask):
    flaky.refuse = 3
    ranked = ask(flaky.address, "recommend", "u1", limit=3)
    assert (ranked.request_id, ranked.bundle_version, ranked.variant) == ("u1", "v1", "varied")
    assert len(flaky.asked) == 4
    flaky.asked.clear()
    assert ask(flaky.address, "features", "s", {"user_id": "u1"}) == calls.Features({}, 5, True)
    assert len(flaky.asked) == 4
    flaky.asked.clear()
    assert ask(flaky.address, "track", Event("e", "view", 1, "u1")) == 7
    assert len(flaky.asked) == 4


@both
def test_a_call_is_not_sent_for_longer_than_it_has_time(flaky, ask):
    flaky.refuse = 1000
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="headwater serve"):
        ask(flaky.address, "recommend", "u1", timeout_s=0.2)
    assert len(flaky.asked) < 5
    flaky.asked.clear()
    with pytest.raises(UnavailableError, match="not now"):
        ask(flaky.address, "recommend", "u1")
    assert len(flaky.asked) == 5
    assert time.monotonic() - started < 20


@both
def test_what_is_the_callers_mistake_is_not_sent_again(flaky, ask):
    flaky.refuse, flaky.code = 1, grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(DataError, match="not now"):
        ask(flaky.address, "recommend", "u1")
    assert len(flaky.asked) == 1


@both
def test_neither_is_what_the_server_has_tried_long_enough_nor_a_stream(flaky, ask):
    flaky.refuse, flaky.trailing = 1, (("grpc-retry-pushback-ms", "-1"),)
    with pytest.raises(UnavailableError):
        ask(flaky.address, "track", Event("e", "view", 1, "u1"))
    assert len(flaky.asked) == 1
    flaky.asked.clear()
    flaky.trailing = ()
    with pytest.raises(UnavailableError):
        ask(flaky.address, "track_many", [Event("e", "view", 1, "u1")])
    assert len(flaky.asked) == 1


@both
def test_events_are_streamed(flaky, ask):
    assert ask(flaky.address, "track_many", [Event(f"e{n}", "view", 1, "u1") for n in range(5)]) == (5, [])


@both
def test_a_server_that_is_not_there_is_named_with_the_next_step(ask):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError, match=rf"{address}.*headwater up"):
        ask(address, "recommend", "u1")


def test_a_server_that_comes_back_in_time_is_found(flaky):
    """The channel looks again soon after it has been refused."""
    port = free_port()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(flaky, server)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(waiting, f"127.0.0.1:{port}", "recommend", "u1")
        time.sleep(0.05)
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        assert asked.result(30).request_id == "u1"
    server.stop(0)


@pytest.mark.parametrize("name", METHODS)
def test_both_clients_take_what_the_call_takes_and_say_what_it_does(name):
    call = getattr(calls, name)
    for client in (Client, AsyncClient):
        method = getattr(client, name)
        assert inspect.signature(method).parameters == inspect.signature(call).parameters
        assert method.__doc__ == call.__doc__
