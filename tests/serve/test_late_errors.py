"""Faults after the first piece of an answer, when its status is long sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.engine_client import _ours
from deployments.openai_format import TextFormat
from deployments.openai_http import _events
from pgmoe.errors import (
    EngineClosed,
    EngineOverloaded,
    ExpertReadError,
    InvalidRequest,
    PgmoeError,
    RequestCancelled,
)
from pgmoe.request import RequestOutput


async def one_piece_then(error: Exception) -> AsyncGenerator[RequestOutput, None]:
    yield RequestOutput(request_id="1", text="so far", token_ids=(1,))
    raise error


@pytest.mark.parametrize("error", [ExpertReadError("expert 3"), RuntimeError("/home/secret")], ids=repr)
async def test_a_stream_that_fails_late_says_so_and_ends_properly(error: Exception) -> None:
    events = [e async for e in _events(one_piece_then(error), TextFormat("1", "m", False), False)]
    first, fault, done = (event.removeprefix("data: ").strip() for event in events)
    assert json.loads(first)["choices"][0]["text"] == "so far"
    assert json.loads(fault)["error"]["code"] == "internal_error"
    assert done == "[DONE]"
    assert "secret" not in fault


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("generate", f"Traceback: {cause}", cause)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (task_error(InvalidRequest("m")), InvalidRequest),
        (task_error(ZeroDivisionError("/home/secret")), PgmoeError),
        (RayActorError(), EngineClosed),
        (DeploymentUnavailableError.__new__(DeploymentUnavailableError), EngineClosed),
        (BackPressureError(1, 2), EngineOverloaded),
        (TaskCancelledError(), RequestCancelled),
        (KeyError("/home/secret"), PgmoeError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ray_raises_leaves_as_an_error_of_ours(foreign: Any, ours: type[PgmoeError]) -> None:
    error = _ours(foreign)
    assert type(error) is ours
    assert "secret" not in str(error)
