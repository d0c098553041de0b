from __future__ import annotations

import pickle

import pytest
from grpc import StatusCode

from deployments.errors import fault_of, from_grpc, message_of, openai_error
from pgmoe.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    ExpertReadError,
    InvalidRequest,
    ModelNotFound,
    PgmoeError,
    PromptTooLong,
    RequestCancelled,
    WeightReadError,
)

OURS: list[tuple[PgmoeError, int, StatusCode]] = [
    (InvalidRequest("m", "top_p"), 400, StatusCode.INVALID_ARGUMENT),
    (PromptTooLong("m", "prompt"), 400, StatusCode.INVALID_ARGUMENT),
    (ModelNotFound("m"), 404, StatusCode.NOT_FOUND),
    (EngineOverloaded("m", retry_after_s=7), 503, StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded("m"), 504, StatusCode.DEADLINE_EXCEEDED),
    (RequestCancelled("m"), 499, StatusCode.CANCELLED),
    (EngineClosed("m"), 503, StatusCode.UNAVAILABLE),
    (ExpertReadError("m"), 500, StatusCode.INTERNAL),
    (WeightReadError("m"), 500, StatusCode.INTERNAL),
]
each = pytest.mark.parametrize(("error", "http", "grpc"), OURS, ids=lambda v: type(v).__name__)


@each
def test_each_error_has_its_statuses_and_its_own_words(
    error: PgmoeError, http: int, grpc: StatusCode
) -> None:
    assert (fault_of(error).http_status, fault_of(error).grpc_status) == (http, grpc)
    assert openai_error(error)["error"]["message"] == "m"


@each
def test_an_error_survives_the_way_between_replicas(error: PgmoeError, http: int, grpc: StatusCode) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("error", [error for error, http, _ in OURS if http != 500], ids=repr)
def test_a_grpc_client_gets_back_the_kind_of_error_that_the_server_had(error: PgmoeError) -> None:
    assert isinstance(error, type(from_grpc(fault_of(error).grpc_status, "m")))


def test_an_unforeseen_error_shows_nothing_of_its_inside() -> None:
    error = KeyError("/home/secret")
    assert fault_of(error).http_status == 500
    assert "secret" not in message_of(error)
