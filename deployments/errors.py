"""The one table from our errors to HTTP statuses, OpenAI error bodies and gRPC status codes, and back."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from pgmoe.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    InvalidRequest,
    ModelNotFound,
    PgmoeError,
    PromptTooLong,
    RequestCancelled,
)

OpenAIError = dict[str, dict[str, str | None]]


@dataclass(frozen=True)
class Fault:
    """How one kind of error looks from outside."""

    http_status: int
    type: str
    """OpenAI's `error.type`."""
    code: str | None
    """OpenAI's `error.code`."""
    grpc_status: StatusCode


_INVALID = "invalid_request_error"
_SERVER = "server_error"
_TABLE: dict[type[BaseException], Fault] = {  # a subclass stands before its base
    PromptTooLong: Fault(400, _INVALID, "context_length_exceeded", StatusCode.INVALID_ARGUMENT),
    InvalidRequest: Fault(400, _INVALID, None, StatusCode.INVALID_ARGUMENT),
    ModelNotFound: Fault(404, _INVALID, "model_not_found", StatusCode.NOT_FOUND),
    EngineOverloaded: Fault(503, _SERVER, "overloaded", StatusCode.RESOURCE_EXHAUSTED),
    DeadlineExceeded: Fault(504, _SERVER, "deadline_exceeded", StatusCode.DEADLINE_EXCEEDED),
    EngineClosed: Fault(503, _SERVER, "unavailable", StatusCode.UNAVAILABLE),
    RequestCancelled: Fault(499, _SERVER, "cancelled", StatusCode.CANCELLED),
    BaseException: Fault(500, _SERVER, "internal_error", StatusCode.INTERNAL),
}
_FROM_GRPC: dict[StatusCode, type[PgmoeError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.NOT_FOUND: ModelNotFound,
    StatusCode.RESOURCE_EXHAUSTED: EngineOverloaded,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.UNAVAILABLE: EngineClosed,
    StatusCode.CANCELLED: RequestCancelled,
}


def fault_of(error: BaseException) -> Fault:
    """The row for `error`."""
    return next(fault for kind, fault in _TABLE.items() if isinstance(error, kind))


def message_of(error: BaseException) -> str:
    """What the caller may read: our own words, and nothing of an unforeseen error's inside."""
    if isinstance(error, PgmoeError):
        return str(error)
    return f"internal error ({type(error).__name__}); the server's log has the details"


def openai_error(error: BaseException) -> OpenAIError:
    """The body that OpenAI's clients understand."""
    fault = fault_of(error)
    param = error.param if isinstance(error, InvalidRequest) else None
    return error_body(message_of(error), type=fault.type, code=fault.code, param=param)


def error_body(
    message: str, *, type: str = _INVALID, code: str | None, param: str | None = None
) -> OpenAIError:
    """An OpenAI error body from its parts."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def from_grpc(status: StatusCode, details: str) -> PgmoeError:
    """The error of our tree that a gRPC status stands for; PgmoeError itself where no other fits."""
    return _FROM_GRPC.get(status, PgmoeError)(details or status.name)
