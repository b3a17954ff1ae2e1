"""Small typed clients, one that waits and one for asyncio: plain objects, errors of :mod:`headwater.errors`.

Both have the methods of :mod:`serving.calls`. A call that finds the server or a part ``UNAVAILABLE`` is sent again by
gRPC, after a pause that is drawn and grows, as long as the call has time left; a stream of events is sent once.
"""

# mypy: allow-untyped-calls
# (grpc generates its stubs without types)

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio

from headwater.errors import DataError, HeadwaterError, ModelError, UnavailableError
from serving import calls
from serving.calls import Call, Features, message_of
from serving.proto.headwater.v1 import event_pb2_grpc, feature_pb2_grpc, recommendation_pb2_grpc

__all__ = ["AsyncClient", "Client", "Features", "message_of"]
P = ParamSpec("P")
T = TypeVar("T")
TIMEOUT_S = 10.0
_SERVICES = (
    recommendation_pb2_grpc.RecommendationServiceStub,
    event_pb2_grpc.EventServiceStub,
    feature_pb2_grpc.FeatureServiceStub,
)
_SENT_AGAIN = (
    {"service": "headwater.v1.RecommendationService"},
    {"service": "headwater.v1.FeatureService"},
    {"service": "headwater.v1.EventService", "method": "Track"},
)
_CONFIG = {
    "methodConfig": [
        {
            "name": _SENT_AGAIN,
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC allows no more
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},  # a server that is down is not asked ever more
}
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config", json.dumps(_CONFIG)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def _waiting(build: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(build)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(build(*args, **kwargs))

    return method


def _awaiting(build: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    @wraps(build)
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(build(*args, **kwargs))

    return method


class Client:
    """One channel to one server; use it as a context manager.

    Every method raises :class:`DataError` for a request that is refused, :class:`ModelError` where nothing can answer
    yet, :class:`UnavailableError` where a part or the server itself is down.
    """

    recommend = _waiting(calls.recommend)
    search = _waiting(calls.search)
    similar = _waiting(calls.similar)
    explain = _waiting(calls.explain)
    track = _waiting(calls.track)
    track_many = _waiting(calls.track_many)
    features = _waiting(calls.features)

    def __init__(self, address: str, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._methods = _methods(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the channel."""
        self._channel.close()

    def _send(self, call: Call[T]) -> T:
        try:
            return call.read(self._methods[call.method](call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise _told(error, self._address) from None


class AsyncClient:
    """As :class:`Client`, for asyncio: ``async with AsyncClient(address) as client: await client.recommend("42")``.

    Clients of one address share a connection, and with it a worker of the server, unless they ask for their own.
    """

    recommend = _awaiting(calls.recommend)
    search = _awaiting(calls.search)
    similar = _awaiting(calls.similar)
    explain = _awaiting(calls.explain)
    track = _awaiting(calls.track)
    track_many = _awaiting(calls.track_many)
    features = _awaiting(calls.features)

    def __init__(self, address: str, timeout_s: float = TIMEOUT_S, own_connection: bool = False) -> None:
        self._address = address
        self._timeout_s = timeout_s
        options = (*_OPTIONS, ("grpc.use_local_subchannel_pool", int(own_connection)))
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._methods = _methods(self._channel)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def _send(self, call: Call[T]) -> T:
        try:
            return call.read(await self._methods[call.method](call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise _told(error, self._address) from None


def _methods(channel: Any) -> dict[str, Any]:
    return {name: method for stub in _SERVICES for name, method in vars(stub(channel)).items()}


def _told(error: Any, address: str) -> HeadwaterError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return DataError(details)
    if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
        return ModelError(details)
    if code is grpc.StatusCode.INTERNAL:
        return HeadwaterError(details)
    if "headwater" in details:  # the server's own words
        return UnavailableError(details)
    return UnavailableError(
        f"server at {address}: {code.name.lower()}, {details[:160] or 'no details'}. "
        "Start it with headwater up or headwater serve."
    )
