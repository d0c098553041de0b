"""Whoever leaves, however they leave: the generation stops, and its place is free."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import grpc
import httpx
import pytest

from deployments.client import PgmoeClient
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.protos.pgmoe.v1.pgmoe_pb2_grpc import PgmoeServiceStub
from pgmoe.request import SamplingParams
from tests.serve.running_server import CONTEXT, ENDLESS, MODEL, PATIENCE_S, Server, eventually

PARAMS = SamplingParams(ignore_eos=True)
REQUEST = pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(ignore_eos=True))
BODY: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": CONTEXT - 16, **ENDLESS}
LIMITS_S = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""Time limits to try until one suffices for a token, which takes longer on a slow machine."""


@contextmanager
def stopped_early(server: Server, reason: str = "cancelled") -> Iterator[Callable[[], bool]]:
    """What starts generations inside must have stopped them midway. Yields whether they made tokens."""
    assert eventually(lambda: server.running() == 0)
    tokens, before = server.tokens(), ended(server)
    yield lambda: server.tokens() > tokens
    assert eventually(lambda: server.running() == 0)
    assert eventually(lambda: bool(ended(server) - before))
    assert {why for _, why in ended(server) - before} == {reason}
    after = server.tokens()
    assert after > tokens
    time.sleep(0.2)
    assert server.tokens() == after


def ended(server: Server) -> Counter[tuple[str, str]]:
    """How many generations have ended, by replica, as these come and go, and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for sample in server.samples():
        if sample.name == "pgmoe_request_success_total":
            counts[sample.labels["replica"], sample.labels["finished_reason"]] += int(sample.value)
    return counts


def test_a_closed_http_stream_stops_the_generation(server: Server) -> None:
    with (
        stopped_early(server),
        httpx.stream(
            "POST", f"{server.url}/v1/completions", json=BODY | {"stream": True}, timeout=PATIENCE_S
        ) as answer,
    ):
        lines = answer.iter_lines()
        for _ in range(6):
            assert next(lines) is not None


def test_a_client_that_waits_no_longer_for_a_whole_answer_stops_the_generation(server: Server) -> None:
    with (
        stopped_early(server) as made_tokens,
        closing(HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)) as connection,
    ):
        connection.request("POST", "/v1/completions", json.dumps(BODY), {"Content-Type": "application/json"})
        assert eventually(made_tokens)


@pytest.mark.parametrize("pieces", [1, *[5] * 14])
def test_a_closed_grpc_stream_stops_the_generation(server: Server, client: PgmoeClient, pieces: int) -> None:
    """Again and again: the client leaves while the proxy waits for a piece, or while it sends one."""
    with stopped_early(server):
        stream = client.stream("x", params=PARAMS)
        for _ in range(pieces):
            next(stream)
        stream.close()


def test_a_closed_channel_stops_the_generation(server: Server) -> None:
    with stopped_early(server):
        channel = grpc.insecure_channel(server.grpc)
        stream = PgmoeServiceStub(channel).GenerateStream(REQUEST)
        next(stream)
        channel.close()


def test_a_cancelled_unary_call_stops_the_generation(server: Server) -> None:
    with stopped_early(server) as made_tokens, grpc.insecure_channel(server.grpc) as channel:
        call = PgmoeServiceStub(channel).Generate.future(REQUEST)
        assert eventually(made_tokens)
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()


def test_a_deadline_of_the_channel_stops_the_generation(server: Server) -> None:
    with stopped_early(server) as made_tokens, grpc.insecure_channel(server.grpc) as channel:
        for limit_s in LIMITS_S:
            with pytest.raises(grpc.RpcError) as caught:
                PgmoeServiceStub(channel).Generate(REQUEST, timeout=limit_s)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if made_tokens():
                break


def http_time_limit(server: Server, stream: bool) -> httpx.Response:
    """The answer within the first time limit that suffices for a token."""
    with stopped_early(server, "timeout") as made_tokens:
        for limit_s in LIMITS_S:
            body = BODY | {"stream": stream, "timeout_s": limit_s}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S)
            if made_tokens():
                break
    return answer


def test_the_requests_own_time_limit_is_an_error_of_a_whole_answer(server: Server) -> None:
    answer = http_time_limit(server, stream=False)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"


def test_the_requests_own_time_limit_is_an_event_in_a_stream(server: Server) -> None:
    answer = http_time_limit(server, stream=True)
    *_, error, done = [line for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert '"deadline_exceeded"' in error
    assert done == "data: [DONE]"
