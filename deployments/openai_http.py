"""The HTTP side of the ingress: OpenAI's routes, `/health` and `/metrics`."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from deployments.echo import Echo
from deployments.engine_client import EngineClient
from deployments.errors import error_body, fault_of, openai_error
from deployments.metrics_page import MetricsPage
from deployments.openai_format import AnswerFormat, ChatFormat, TextFormat
from deployments.openai_schema import ChatCompletionRequest, CompletionRequest, parse
from pgmoe.errors import EngineOverloaded, PgmoeError
from pgmoe.request import Request as EngineRequest
from pgmoe.request import RequestOutput

_log = logging.getLogger("ray.serve")  # whose lines Serve keeps with the replica


class OpenAIRoutes:
    """The handlers; each takes the raw request, so that every fault gets OpenAI's error body."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._created = int(time.time())

    async def chat_completions(self, http: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = parse(ChatCompletionRequest, await http.body())
        self._client.check_model(body.model)
        messages = [message.flat() for message in body.messages]
        params = body.sampling(self._client.defaults)
        request = self._client.chat_request(messages, params, body.timeout_s, body.priority or 0)
        style = ChatFormat(request.request_id, body.model, request.params.logprobs is not None)
        return await self._answer(body, request, style)

    async def completions(self, http: Request) -> Response:
        """`POST /v1/completions`."""
        body = parse(CompletionRequest, await http.body())
        self._client.check_model(body.model)
        prompt, params = body.single_prompt(), body.sampling(self._client.defaults)
        request = self._client.text_request(prompt, params, body.timeout_s, body.priority or 0)
        style = TextFormat(
            request.request_id,
            body.model,
            params.logprobs is not None,
            echo=Echo(self._client.tokenizer, prompt) if body.echo else None,
            prompt_only=body.prompt_only,
        )
        return await self._answer(body, request, style)

    async def models(self) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [await self._card()]})

    async def model(self, name: str) -> Response:
        """`GET /v1/models/{name}`."""
        self._client.check_model(name)
        return JSONResponse(await self._card())

    async def health(self) -> Response:
        """`GET /health`: 200 if an engine replica answers that it is well, else 503."""
        await self._client.check_health()
        return JSONResponse({"status": "ok"})

    async def metrics(self, http: Request) -> Response:
        """`GET /metrics`: the metric families of all engine replicas as one Prometheus page."""
        page = MetricsPage(await self._client.metrics())
        encode, content_type = choose_encoder(http.headers.get("accept", ""))
        return Response(encode(page), media_type=content_type)

    async def _answer(
        self, body: ChatCompletionRequest | CompletionRequest, request: EngineRequest, style: AnswerFormat
    ) -> Response:
        if not body.stream:
            return JSONResponse(style.whole(await self._client.whole(request)))
        pieces = await self._client.started(request)
        events = _events(pieces, style, body.include_usage)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    async def _card(self) -> dict[str, Any]:
        info = await self._client.info()
        head = {"id": info.name, "object": "model", "created": self._created, "owned_by": "pgmoe"}
        return {**head, "max_model_len": info.max_model_len, "pgmoe": asdict(info)}


def build_http(client: EngineClient) -> FastAPI:
    """The application with its routes and its error handlers."""
    app = FastAPI(title="pgmoe", docs_url=None, redoc_url=None, openapi_url=None)
    routes = OpenAIRoutes(client)
    app.post("/v1/chat/completions")(routes.chat_completions)
    app.post("/v1/completions")(routes.completions)
    app.get("/v1/models")(routes.models)
    app.get("/v1/models/{name:path}")(routes.model)
    app.get("/health")(routes.health)
    app.get("/metrics")(routes.metrics)
    app.add_exception_handler(PgmoeError, _on_error)
    app.add_exception_handler(HTTPException, _on_no_route)
    app.add_exception_handler(Exception, _on_error)
    return app


async def _events(
    pieces: AsyncGenerator[RequestOutput, None], style: AnswerFormat, include_usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events. The status is long sent, so a late error becomes an event of its own."""
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield _event(style.chunk(piece))
            if include_usage:
                yield _event(style.usage_chunk())
        except Exception as error:  # a stream that breaks off without [DONE] looks like a lost connection
            if not isinstance(error, PgmoeError):
                _log.error("a stream ended with an unforeseen error", exc_info=error)
            yield _event(openai_error(error))
    yield "data: [DONE]\n\n"


def _event(content: object) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _on_error(_: Request, error: Exception) -> Response:
    headers = (
        {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, EngineOverloaded) else None
    )
    return JSONResponse(openai_error(error), fault_of(error).http_status, headers)


async def _on_no_route(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}; the API is below /v1"
    return JSONResponse(error_body(message, code=None), error.status_code, error.headers)
