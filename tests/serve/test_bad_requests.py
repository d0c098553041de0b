"""What a server gets sent that it cannot honour: the right status, a message that helps, and it goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from deployments.client import PgmoeClient
from pgmoe.errors import InvalidRequest, ModelNotFound, PgmoeError
from pgmoe.request import SamplingParams
from tests.serve.running_server import CONTEXT, MODEL, PATIENCE_S, Server, eventually

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
LONG, LIMIT = "x " * (2 * CONTEXT), str(CONTEXT)
HELLO = [{"role": "user", "content": "Hello"}]


def text(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Hello", "max_tokens": 1} | fields


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "max_tokens": 1} | fields


HTTP: dict[str, tuple[str, Any, int, str | None, str | None, str]] = {
    # path, body, status, code, param, a part of the message
    "malformed JSON": (TEXT, b'{"model": "tiny', 400, None, None, "not JSON"),
    "no JSON object": (TEXT, b"[1, 2]", 400, None, None, "object"),
    "empty body": (CHAT, b"", 400, None, None, "not JSON"),
    "invalid UTF-8": (CHAT, b'{"model": "\xff\xfe"}', 400, None, None, "not JSON"),
    "half a surrogate": (TEXT, b'{"model": "x", "prompt": "\\ud800"}', 400, None, None, "not JSON"),
    "unknown model": (CHAT, chat(model="gpt-4"), 404, "model_not_found", None, MODEL),
    "no model": (TEXT, {"prompt": "x"}, 400, None, "model", "required"),
    "no messages": (CHAT, {"model": MODEL}, 400, None, "messages", "required"),
    "empty messages": (CHAT, chat(messages=[]), 400, None, "messages", "at least one"),
    "no content": (CHAT, chat(messages=[{"role": "user"}]), 400, None, "messages", "content"),
    "a picture": (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        400,
        None,
        "messages",
        "'text'",
    ),
    "empty prompt": (TEXT, text(prompt=""), 400, None, "prompt", "empty"),
    "no token ids": (TEXT, text(prompt=[]), 400, None, "prompt", "at least"),
    "unknown token id": (TEXT, text(prompt=[3, 10**6]), 400, None, "prompt", "1000000"),
    "several prompts": (TEXT, text(prompt=["a", "b"]), 400, None, "prompt", "one at a time"),
    "negative max_tokens": (TEXT, text(max_tokens=-5), 400, None, "max_tokens", "-5"),
    "zero max_tokens": (CHAT, chat(max_tokens=0), 400, None, "max_tokens", "at least 1"),
    "huge max_tokens": (
        TEXT,
        text(max_tokens=10**30),
        400,
        "context_length_exceeded",
        "max_tokens",
        LIMIT,
    ),
    "long prompt": (TEXT, text(prompt=LONG), 400, "context_length_exceeded", "prompt", LIMIT),
    "text for a number": (TEXT, text(max_tokens="5"), 400, None, "max_tokens", "integer"),
    "true for a number": (TEXT, text(temperature=True), 400, None, "temperature", "number"),
    "a list for text": (CHAT, chat(model=[MODEL]), 400, None, "model", "string"),
    "temperature": (CHAT, chat(temperature=-0.1), 400, None, "temperature", "-0.1"),
    "top_p": (CHAT, chat(top_p=0), 400, None, "top_p", "above 0"),
    "empty stop": (CHAT, chat(stop=[""]), 400, None, "stop", "non-empty"),
    "many log-probabilities": (CHAT, chat(logprobs=True, top_logprobs=99), 400, None, "logprobs", "20"),
    "lone top_logprobs": (CHAT, chat(top_logprobs=2), 400, None, "top_logprobs", "logprobs"),
    "many answers": (CHAT, chat(n=17), 400, None, "n", "between 1 and 16"),
    "several lists of ids": (TEXT, text(prompt=[[3], [4]]), 400, None, "prompt", "one at a time"),
    "an empty list of ids": (TEXT, text(prompt=[[]]), 400, None, "prompt", "empty"),
    "echo of a chat": (CHAT, chat(echo=True), 400, None, "echo", "only False"),
    "no tokens and no echo": (TEXT, text(max_tokens=0), 400, None, "max_tokens", "at least 1"),
    "best of several": (TEXT, text(best_of=2), 400, None, "best_of", "only 1"),
    "tools": (CHAT, chat(tools=[{"type": "function"}]), 400, None, "tools", "not supported"),
    "unknown field": (CHAT, chat(temprature=1), 400, None, "temprature", "temprature"),
    "negative time limit": (TEXT, text(timeout_s=-1), 400, None, "timeout_s", "above 0"),
}


@pytest.mark.parametrize("case", HTTP, ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_bad_http_request_gets_an_openai_error_body(server: Server, case: str, stream: bool) -> None:
    path, body, status, code, param, message = HTTP[case]
    content = body if isinstance(body, bytes) else json.dumps(body | {"stream": stream}).encode()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url + path, content=content, headers=headers, timeout=PATIENCE_S)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", TEXT, 405), ("POST", "/v1/models", 405), ("GET", "/", 404)],
)
def test_an_unknown_route_gets_an_openai_error_body(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, server.url + path, timeout=PATIENCE_S)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]


GRPC: dict[str, tuple[dict[str, Any], type[PgmoeError], str]] = {
    # arguments of generate, error, a part of the message
    "unknown model": ({"prompt": "x", "model": "gpt-4"}, ModelNotFound, MODEL),
    "empty prompt": ({"prompt": ""}, InvalidRequest, "empty"),
    "no token ids": ({"prompt": []}, InvalidRequest, "empty"),
    "unknown token id": ({"prompt": [10**6]}, InvalidRequest, "1000000"),
    "empty messages": ({"messages": []}, InvalidRequest, "at least one"),
    "long prompt": ({"prompt": LONG}, InvalidRequest, LIMIT),
    "huge max_tokens": (
        {"prompt": "x", "params": SamplingParams(max_tokens=10**9)},
        InvalidRequest,
        LIMIT,
    ),
}


@pytest.mark.parametrize("case", GRPC, ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_bad_grpc_request_gets_its_status_and_a_message(
    client: PgmoeClient, case: str, stream: bool
) -> None:
    arguments, error, message = GRPC[case]
    with pytest.raises(error, match=message) as caught:
        _ = list(client.stream(**arguments)) if stream else client.generate(**arguments)
    assert type(caught.value) is error


def test_the_server_goes_on_after_bad_requests(server: Server, client: PgmoeClient) -> None:
    assert httpx.post(server.url + TEXT, json=text(), timeout=PATIENCE_S).status_code == 200
    assert client.generate("Hello", params=SamplingParams(max_tokens=1)).finished
    assert httpx.get(server.url + "/health", timeout=PATIENCE_S).json() == {"status": "ok"}
    assert eventually(lambda: server.running() == 0)
