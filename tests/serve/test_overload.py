"""More requests at once than fit: some are refused and told to come again, the others are answered."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from deployments.client import PgmoeClient
from pgmoe.errors import EngineOverloaded
from pgmoe.request import SamplingParams
from tests.serve.running_server import ENDLESS, MODEL, Server, eventually

AT_ONCE = 40
CAPACITY = 5  # running and waiting, as the fixture has it; twice that once a second replica has come
TOKENS = 200


def test_http_requests_beyond_capacity_get_503_and_retry_after(server: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": TOKENS, **ENDLESS}
    assert eventually(lambda: server.running() == 0)
    with httpx.Client(timeout=240, limits=httpx.Limits()) as http, ThreadPoolExecutor(AT_ONCE) as clients:

        def ask(_: int) -> httpx.Response:
            return http.post(f"{server.url}/v1/completions", json=body)

        answers = list(clients.map(ask, range(AT_ONCE)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len([answer for answer in answers if answer.status_code == 200]) >= CAPACITY
    assert len(refused) == AT_ONCE - len([a for a in answers if a.status_code == 200]) > 0
    for answer in refused:
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["code"] == "overloaded"
    assert eventually(lambda: server.running() == 0)


def test_grpc_requests_beyond_capacity_are_refused_as_overload(server: Server, client: PgmoeClient) -> None:
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    assert eventually(lambda: server.running() == 0)

    def ask(_: int) -> str:
        try:
            answer = client.generate("x", params=params)
        except EngineOverloaded:
            return "refused"
        assert len(answer.token_ids) == TOKENS
        return "answered"

    with ThreadPoolExecutor(AT_ONCE) as clients:
        count = Counter(clients.map(ask, range(AT_ONCE)))
    assert count["answered"] >= CAPACITY
    assert count["refused"] == AT_ONCE - count["answered"] > 0
