"""The one way from either protocol to an engine replica."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from prometheus_client import Metric
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from transformers import PreTrainedTokenizerBase

from deployments.pieces import join_each
from deployments.sampling_defaults import SamplingDefaults
from pgmoe.errors import EngineClosed, EngineOverloaded, ModelNotFound, PgmoeError, RequestCancelled
from pgmoe.models.chat_template import ChatMessage, ChatTemplate
from pgmoe.request import ModelInfo, Request, RequestOutput, SamplingParams

METRICS_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 5.0
_UNAVAILABLE = (BackPressureError, DeploymentUnavailableError, RayActorError)
_log = logging.getLogger("ray.serve")  # whose lines Serve keeps with the replica


class EngineClient:
    """Turns calls into requests, sends them to a replica and streams the answers.

    What Ray raises leaves as an error of ours, and an unforeseen one is logged first.
    """

    def __init__(
        self,
        engine: DeploymentHandle[Any],
        model: str,
        tokenizer: PreTrainedTokenizerBase | None,
        defaults: SamplingDefaults,
        timeout_s: float | None,
    ) -> None:
        self.model = model
        self.defaults = defaults
        self.tokenizer = tokenizer
        self._engine = engine
        self._template = ChatTemplate(tokenizer)
        self._timeout_s = timeout_s
        self._info: ModelInfo | None = None

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound unless `name` is what is served here."""
        if name != self.model:
            raise ModelNotFound(f"model {name!r} is not served here; this server has {self.model!r}")

    def chat_request(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams,
        timeout_s: float | None,
        priority: int = 0,
    ) -> Request:
        """A request for the next turn of a conversation. Raises InvalidRequest."""
        prompt = self._template.render(messages)
        return self.text_request(prompt, params, timeout_s, priority, add_special_tokens=False)

    def text_request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        timeout_s: float | None,
        priority: int = 0,
        *,
        add_special_tokens: bool = True,
    ) -> Request:
        """A request to continue a text or token ids; the server's own time limit holds too."""
        limits = [limit for limit in (timeout_s, self._timeout_s) if limit is not None]
        text = isinstance(prompt, str)
        return Request(
            request_id=uuid.uuid4().hex,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else tuple(prompt),
            params=params,
            timeout_s=min(limits, default=None),
            add_special_tokens=text and add_special_tokens,
            priority=priority,
        )

    async def stream(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        """The pieces of all answers; closing the generator stops the generation. Raises PgmoeError."""
        response = self._engine.options(stream=True).generate.remote(request)
        assert isinstance(response, DeploymentResponseGenerator)
        try:
            async for piece in response:
                if isinstance(piece, PgmoeError):
                    raise piece
                yield piece
        except _UNAVAILABLE as error:
            raise _ours(error) from error
        except BaseException as error:
            response.cancel()  # without it, a stream that its client leaves stays in memory
            if isinstance(error, PgmoeError) or not isinstance(error, Exception):
                raise
            raise _ours(error) from error

    async def started(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        """`stream`, but errors before the first piece are raised here, before any of it is sent."""
        pieces = self.stream(request)
        return _put_back(await anext(pieces), pieces)

    async def whole(self, request: Request) -> list[RequestOutput]:
        """Each of the request's answers as one piece, by index."""
        answers = join_each([piece async for piece in self.stream(request)])
        return sorted(answers, key=lambda answer: answer.index)

    async def info(self) -> ModelInfo:
        """What the engine serves. Raises PgmoeError: EngineClosed where no replica answers."""
        if self._info is None:
            try:
                self._info = await self._engine.info.remote()
            except Exception as error:  # mapped, whatever it is
                raise _ours(error) from error
        return self._info

    async def check_health(self) -> None:
        """Raises EngineClosed unless a replica answers within HEALTH_TIMEOUT_S that it is well."""
        try:
            await asyncio.wait_for(self._engine.check_health.remote(), HEALTH_TIMEOUT_S)
        except Exception as error:  # whatever it is, it is not health
            raise EngineClosed("no engine replica is healthy; see the server's log") from error

    async def metrics(self) -> list[list[Metric]]:
        """The metric families of every replica; none where there is no replica. Raises EngineClosed."""
        try:
            pages = self._engine.broadcast("metrics")
            return list(await pages.results_async(timeout_s=METRICS_TIMEOUT_S))
        except DeploymentUnavailableError:
            return []
        except (TimeoutError, RayActorError) as error:
            raise EngineClosed("an engine replica does not answer; its metrics are missing") from error


def _ours(error: Exception) -> PgmoeError:
    """The error of our tree for what a call to a replica raised."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    match cause:
        case PgmoeError():
            return cause
        case BackPressureError():
            return EngineOverloaded("too many requests wait already; try again later")
        case DeploymentUnavailableError() | RayActorError():
            return EngineClosed("the engine replica went away or does not answer; try again in some seconds")
        case TaskCancelledError():
            return RequestCancelled("the request was cancelled on its way to the engine")
    _log.error("a call to an engine replica failed", exc_info=error)
    return PgmoeError(f"internal error ({type(cause).__name__}); the server's log has the details")


async def _put_back(
    first: RequestOutput, rest: AsyncGenerator[RequestOutput, None]
) -> AsyncGenerator[RequestOutput, None]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()
