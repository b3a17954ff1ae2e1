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
"""

import time
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from headwater.errors import DataError, HeadwaterError, ResourceError, UnavailableError
from headwater.log import get_logger
from serving.telemetry import Telemetry

log = get_logger("serving")
Behaviour = Callable[[Any, Any], Any]


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

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        name: str = handler_call_details.method.rpartition("/")[2]
        if handler is None or handler.response_streaming:
            return handler
        wrap, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        if handler.request_streaming:
            wrap, behaviour = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        return wrap(
            self._answering(name, behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _answering(self, name: str, behaviour: Behaviour) -> Behaviour:
        def answer(request: Any, context: Any) -> Any:
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

        return answer


def _abort(context: Any, code: Any, error: Exception, method: str) -> NoReturn:
    if code is grpc.StatusCode.INTERNAL:
        log.error("call_failed", method=method, exc_info=error)
        context.abort(code, f"{method}: internal error. The server's log has the cause.")
    context.abort(code, str(error))
    raise AssertionError("abort raises")
