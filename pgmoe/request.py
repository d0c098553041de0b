"""What goes into an engine and what comes out: plain frozen data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pgmoe.checks import check, is_finite, is_integer
from pgmoe.errors import InvalidRequest
from pgmoe.response_format import ResponseFormat as ResponseFormat
from pgmoe.sampling_params import MAX_LOGPROBS as MAX_LOGPROBS
from pgmoe.sampling_params import MAX_STOP_STRINGS as MAX_STOP_STRINGS
from pgmoe.sampling_params import SamplingParams as SamplingParams

FinishReason = Literal["stop", "length"]
MAX_PRIORITY = 1000


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to answer. Exactly one of `prompt` and `prompt_token_ids` is given."""

    request_id: str
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    timeout_s: float | None = None
    """The engine ends the request with DeadlineExceeded this long after it was submitted."""
    add_special_tokens: bool = True
    """Whether the tokenizer adds BOS and the like; a chat template has written them already."""
    priority: int = 0
    """Of the requests that wait, those with a lower number run first (-MAX_PRIORITY to MAX_PRIORITY)."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompt_token_ids is None):
            raise InvalidRequest("give exactly one of prompt and prompt_token_ids", "prompt")
        check(isinstance(self.prompt, str | None), "prompt", self.prompt, "a string")
        ok = self.timeout_s is None or (is_finite(self.timeout_s) and self.timeout_s > 0)
        check(ok, "timeout_s", self.timeout_s, "a number of seconds above 0")
        ok = is_integer(self.priority) and abs(self.priority) <= MAX_PRIORITY
        check(ok, "priority", self.priority, f"an integer between -{MAX_PRIORITY} and {MAX_PRIORITY}")


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One token, its natural-log probability and the likeliest alternatives (best first)."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    """(token id, text, log-probability)."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one request cost."""

    prompt_tokens: int
    completion_tokens: int
    expert_hits: int = 0
    expert_misses: int = 0
    expert_bytes: int = 0
    """Bytes moved to the device during its steps: experts that it missed, and experts fetched ahead."""
    expert_stall_s: float = 0.0
    """Seconds that its steps waited for experts."""
    cached_tokens: int = 0
    """Of the prompt, whose keys and values were there already."""
    queue_s: float = 0.0
    """Seconds from its submission to its first step."""
    time_to_first_token_s: float | None = None
    """Seconds from its submission to the first token; None before there is one."""
    decode_s: float = 0.0
    """Seconds from the first token to the last."""
    max_inter_token_s: float = 0.0
    """Seconds, at most, from one token to the next."""
    num_preemptions: int = 0
    """How often it gave its memory up to others and was computed anew."""

    @property
    def mean_inter_token_s(self) -> float | None:
        """Seconds, on average, from one token to the next; None with fewer than two tokens."""
        return self.decode_s / (self.completion_tokens - 1) if self.completion_tokens > 1 else None


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What is new of an answer since the last piece. The finished one has `finish_reason` and `usage`."""

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    index: int = 0
    """Which of the request's `n` answers."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """One for each prompt token, None for the first; on the first piece alone, and only where asked for."""

    @property
    def finished(self) -> bool:
        """Whether this is the last piece."""
        return self.finish_reason is not None

    @classmethod
    def join(cls, pieces: Sequence[RequestOutput]) -> RequestOutput:
        """Consecutive pieces (one or more) of the same answer as one."""
        last = pieces[-1]
        return cls(
            request_id=last.request_id,
            text="".join(p.text for p in pieces),
            token_ids=tuple(t for p in pieces for t in p.token_ids),
            logprobs=tuple(t for p in pieces for t in p.logprobs),
            finish_reason=last.finish_reason,
            usage=last.usage,
            index=last.index,
            prompt_logprobs=tuple(t for p in pieces for t in p.prompt_logprobs),
        )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer, as `LLM.generate` returns it."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    usage: Usage
    index: int = 0
    """Which of the request's `n` answers."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """One for each prompt token, None for the first; empty unless asked for."""

    @classmethod
    def join(cls, pieces: Iterable[RequestOutput]) -> Completion:
        """Put all pieces of one answer together, the finished one last."""
        whole = RequestOutput.join(list(pieces))
        assert whole.finished
        assert whole.usage is not None
        return cls(**vars(whole))


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What an engine serves, for `GetModelInfo`, `/v1/models` and the CLI."""

    name: str
    architecture: str
    device: str
    dtype: str
    num_moe_layers: int
    num_experts: int
    """Per layer."""
    top_k: int
    dense_bytes: int
    """Of memory that everything but the experts takes."""
    expert_bytes: int
    """Of one expert."""
    num_slots: int
    """Experts that fit on the device at once."""
    max_model_len: int
    vocab_size: int
    """Token ids are below this."""
    is_encoder_decoder: bool

    @property
    def total_bytes(self) -> int:
        """Of memory that the model takes with all experts on the device."""
        return self.dense_bytes + self.num_moe_layers * self.num_experts * self.expert_bytes
