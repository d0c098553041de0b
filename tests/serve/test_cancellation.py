"""Whoever leaves, however they leave: the generation stops, and its place is free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import pytest

from deployments.client import PgmoeClient
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.protos.pgmoe.v1.pgmoe_pb2_grpc import PgmoeServiceStub
from pgmoe.request import SamplingParams
from tests.serve.running_server import CONTEXT, ENDLESS, MODEL, Server, eventually

PARAMS = SamplingParams(ignore_eos=True)
REQUEST = pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(ignore_eos=True))
LIMIT = CONTEXT // 2  # tokens: far below what a generation that nobody stops would make


@contextmanager
def stopped_early(server: Server, reason: str = "cancelled") -> Iterator[None]:
    """What starts inside one generation and leaves it must have stopped it."""
    tokens = server.tokens()
    ended = server.total("pgmoe_request_success_total", finished_reason=reason)
    yield
    assert eventually(lambda: server.running() == 0)
    assert server.total("pgmoe_request_success_total", finished_reason=reason) == ended + 1
    after = server.tokens()
    assert 0 < after - tokens < LIMIT
    time.sleep(0.2)
    assert server.tokens() == after


def running(server: Server) -> None:
    assert eventually(lambda: server.running() == 1), "the generation has begun"


def test_a_closed_http_stream_stops_the_generation(server: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": CONTEXT - 16, "stream": True, **ENDLESS}
    with stopped_early(server), httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            assert next(lines) is not None


def test_a_client_that_waits_no_longer_for_a_whole_answer_stops_the_generation(server: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": CONTEXT - 16, **ENDLESS}
    with stopped_early(server), pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.3)


def test_a_closed_grpc_stream_stops_the_generation(server: Server, client: PgmoeClient) -> None:
    with stopped_early(server):
        stream = client.stream("x", params=PARAMS)
        for _ in range(5):
            next(stream)
        stream.close()


def test_a_closed_channel_stops_the_generation(server: Server) -> None:
    with stopped_early(server):
        channel = grpc.insecure_channel(server.grpc)
        stream = PgmoeServiceStub(channel).GenerateStream(REQUEST)
        next(stream)
        channel.close()


def test_a_cancelled_unary_call_stops_the_generation(server: Server) -> None:
    with stopped_early(server), grpc.insecure_channel(server.grpc) as channel:
        call = PgmoeServiceStub(channel).Generate.future(REQUEST)
        running(server)
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()


def test_a_deadline_of_the_channel_stops_the_generation(server: Server) -> None:
    with stopped_early(server), grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            PgmoeServiceStub(channel).Generate(REQUEST, timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def http_time_limit(server: Server, stream: bool) -> httpx.Response:
    body: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 400, "timeout_s": 0.2, **ENDLESS}
    return httpx.post(f"{server.url}/v1/completions", json=body | {"stream": stream}, timeout=30)


def test_the_requests_own_time_limit_is_an_error_of_a_whole_answer(server: Server) -> None:
    with stopped_early(server, "timeout"):
        answer = http_time_limit(server, stream=False)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"


def test_the_requests_own_time_limit_is_an_event_in_a_stream(server: Server) -> None:
    with stopped_early(server, "timeout"):
        answer = http_time_limit(server, stream=True)
    *_, error, done = [line for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert '"deadline_exceeded"' in error
    assert done == "data: [DONE]"
