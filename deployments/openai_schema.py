"""What OpenAI's clients send.

A field that would change the answer and is not honoured here is refused, never dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from deployments.openai_fields import (
    Message,
    ResponseFormatField,
    StreamOptions,
    Strict,
    StructuredOutputs,
    logit_bias,
)
from deployments.sampling_defaults import SamplingDefaults
from pgmoe.errors import InvalidRequest
from pgmoe.request import ResponseFormat, SamplingParams

IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")
)
"""Fields that have no say in the answer's text."""
ONLY: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
}
"""Fields of which only these values (or null) are honoured, by requests that do not have them."""


class _GenerationRequest(Strict):
    """What chat and text completions share; null means "not given"."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    response_format: ResponseFormatField | None = None
    # Beside OpenAI's own, with vLLM's names:
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    timeout_s: float | None = None
    priority: int | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_or_refuse(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        limited = {name: allowed for name, allowed in ONLY.items() if name not in cls.model_fields}
        for name, allowed in limited.items():
            value = data.get(name)
            if value is not None and value not in allowed:
                choices = " or ".join(map(repr, allowed)) or "leaving it out"
                raise ValueError(f"{name}: {value!r} is not supported by this server, only {choices}")
        return {k: v for k, v in data.items() if k not in IGNORED and k not in limited}

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling(self, defaults: SamplingDefaults, **own: Any) -> SamplingParams:
        shared = (
            "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "top_k", "min_p",
            "repetition_penalty", "ignore_eos", "n",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in shared} | own
        given |= {"logit_bias": logit_bias(self.logit_bias or {}), "response_format": self._format()}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(stop=stop, **(defaults | {k: v for k, v in given.items() if v is not None}))

    def _format(self) -> ResponseFormat | None:
        asked = self.response_format.format() if self.response_format else None
        if self.structured_outputs is None:
            return asked
        if asked is not None:
            raise InvalidRequest(
                "structured_outputs: a response_format is given, too; leave one of them out",
                "structured_outputs",
            )
        return self.structured_outputs.format()


class ChatCompletionRequest(_GenerationRequest):
    """Body of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        return self

    def sampling(self, defaults: SamplingDefaults) -> SamplingParams:
        """What the caller gave over the model's own defaults. Raises InvalidRequest if out of range."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(defaults, logprobs=logprobs, max_tokens=tokens)


class CompletionRequest(_GenerationRequest):
    """Body of `/v1/completions`. `max_tokens` is 16 where not given, as OpenAI has it.

    With `echo`, `max_tokens` may be 0: the prompt alone comes back.
    """

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | list[int]
        | Annotated[list[list[int]], Field(min_length=1)]
    )
    echo: bool | None = None
    logprobs: int | None = None

    @property
    def prompt_only(self) -> bool:
        """Whether nothing of the answer is to be shown, for which one token is generated all the same."""
        return bool(self.echo) and self.max_tokens == 0

    def single_prompt(self) -> str | list[int]:
        """The one prompt. Raises InvalidRequest where there are several."""
        if isinstance(self.prompt, str):
            return self.prompt
        prompts = [part for part in self.prompt if not isinstance(part, int)]
        if len(prompts) > 1:
            raise InvalidRequest(
                f"prompt: {len(prompts)} prompts in one request; send one at a time", "prompt"
            )
        return prompts[0] if prompts else [part for part in self.prompt if isinstance(part, int)]

    def sampling(self, defaults: SamplingDefaults) -> SamplingParams:
        """What the caller gave over the model's own defaults. Raises InvalidRequest if out of range."""
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        return self._sampling(
            defaults,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
            max_tokens=1 if self.prompt_only else max_tokens,
        )


R = TypeVar("R", ChatCompletionRequest, CompletionRequest)


def parse(kind: type[R], body: bytes) -> R:
    """Read a request body. Raises InvalidRequest that names the field at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        # Of a field that takes several shapes pydantic tells a fault for each; the deepest was nearest.
        fault = max(error.errors(include_url=False, include_context=False), key=lambda e: len(e["loc"]))
    where = [str(part) for part in fault["loc"] if not _is_shape(part)]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        raise InvalidRequest(f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}")
    if not where:
        ours = fault["type"] == "value_error"  # "field: what is wrong", see the validators above
        raise InvalidRequest(message, message.partition(":")[0] if ours else None)
    got = f" (got {fault['input']!r:.80})" if fault["type"] != "missing" else ""
    raise InvalidRequest(f"{'.'.join(where)}: {message}{got}", where[0])


def _is_shape(part: str | int) -> bool:
    """Whether a step of a fault's path names one of a field's types instead of a field."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))
