"""Errors to gRPC codes, in one place: what a client did wrong, what it may retry, what an operator must mend.

================  ===================  =======================================
error             code                 the client
================  ===================  =======================================
DataError         INVALID_ARGUMENT     mends the request
HeadwaterError    FAILED_PRECONDITION  waits for the platform's state to change
UnavailableError  UNAVAILABLE          retries
ResourceError     RESOURCE_EXHAUSTED   retries later
anything else     INTERNAL             learns nothing; the log does
================  ===================  =======================================

Bytes that are no such message are the client's mistake too. gRPC would answer INTERNAL by itself where a message cannot
be read, so what reads it returns :class:`Malformed` instead of raising, and the method is not called.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

import grpc

from headwater.errors import DataError, HeadwaterError, ResourceError, UnavailableError
from headwater.log import REQUEST_ID, get_logger
from serving.run import new_request_id, request_id
from serving.telemetry import Telemetry
from serving.tracing import ended

log = get_logger("serving")
Behaviour = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a message that could not be read."""

    method: str

    def refuse(self, context: Any) -> NoReturn:
        """End the call."""
        told = f"{self.method}: the request is not its protobuf message. Send what the .proto files say."
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, told)
        raise AssertionError("abort raises")


def code_of(error: Exception) -> Any:
    """Return the gRPC code that tells the client what to do."""
    if isinstance(error, DataError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, UnavailableError):
        return grpc.StatusCode.UNAVAILABLE
    if isinstance(error, ResourceError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(error, HeadwaterError):
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.INTERNAL


class Statuses(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Turns what a method raises into a status, and times and counts every call."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if method not in self._handlers:  # gRPC asks with each call, and has one handler of each method
            self._handlers[method] = self._around(handler, method)
        return self._handlers[method]

    def _around(self, handler: Any, method: str) -> Any:
        name = method.rpartition("/")[2]
        kind = f"{'stream' if handler.request_streaming else 'unary'}_"
        kind += "stream" if handler.response_streaming else "unary"
        behaviour = _reading(getattr(handler, kind), handler.request_streaming)
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            behaviour if handler.response_streaming else self._answering(method, behaviour),
            request_deserializer=_forgiving(handler.request_deserializer, name),
            response_serializer=handler.response_serializer,
        )

    def _answering(self, method: str, behaviour: Behaviour) -> Behaviour:
        name = method.rpartition("/")[2]

        def answer(request: Any, context: Any, span: Any = None) -> Any:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            try:
                return behaviour(request, context)
            except Exception as error:
                if context.code() is not None:  # the method has aborted by itself
                    code = context.code()
                    raise
                code = code_of(error)
                _abort(context, code, error, name)
            finally:
                self._telemetry.call(name, code.name, time.perf_counter() - started)
                ended(span, code)

        def named(request: Any, context: Any) -> Any:
            token = REQUEST_ID.set(new_request_id())
            try:
                tracing = self._telemetry.tracing
                if tracing is None:
                    return answer(request, context)
                with tracing.call(method, request_id(), dict(context.invocation_metadata())) as span:
                    return answer(request, context, span)
            finally:
                REQUEST_ID.reset(token)

        return named


def _forgiving(read: Callable[[bytes], Any], method: str) -> Callable[[bytes], Any]:
    def forgive(raw: bytes) -> Any:
        try:
            return read(raw)
        except Exception:
            return Malformed(method)

    return forgive


def _reading(behaviour: Behaviour, streams: bool) -> Behaviour:
    """Refuse what could not be read before the method sees it."""

    def each(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            if isinstance(request, Malformed):
                request.refuse(context)
            yield request

    @wraps(behaviour)  # gRPC looks for attributes of some of them
    def answer(request: Any, context: Any, *others: Any) -> Any:
        if isinstance(request, Malformed):
            request.refuse(context)
        return behaviour(each(request, context) if streams else request, context, *others)

    return answer


def _abort(context: Any, code: Any, error: Exception, method: str) -> NoReturn:
    if code is grpc.StatusCode.INTERNAL:
        log.error("call_failed", method=method, exc_info=error)
        context.abort(code, f"{method}: internal error. The server's log has the cause, under request {request_id()}.")
    context.abort(code, str(error))
    raise AssertionError("abort raises")
