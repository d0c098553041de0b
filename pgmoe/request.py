"""What goes into an engine and what comes out: plain frozen data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pgmoe.errors import InvalidRequest

FinishReason = Literal["stop", "length"]
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16


def _check(ok: bool, param: str, value: object, limit: str) -> None:
    if not ok:
        raise InvalidRequest(f"{param} must be {limit}, got {value!r}", param)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return math.isfinite(value) if isinstance(value, float) else _is_integer(value)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Raises InvalidRequest for a value out of its range."""

    max_tokens: int | None = None
    """Most tokens to generate; up to the end of the context where None."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Multiplicative, over prompt and answer (arXiv 1909.05858); 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token already in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it stands in the answer."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token (benchmarks)."""
    seed: int | None = None
    """Two requests with the same seed, prompt and parameters get the same answer."""
    logprobs: int | None = None
    """Report each token's log-probability and those of this many likeliest ones (0 to 20)."""

    def __post_init__(self) -> None:
        numbers = (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        for name in numbers:
            value = getattr(self, name)
            _check(_is_finite(value), name, value, "a finite number")
        for name in ("max_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            ok = _is_integer(value) or (value is None and name != "top_k")
            _check(ok, name, value, "an integer")
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(0 <= self.temperature <= 10, "temperature", self.temperature, "between 0 and 10")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        _check(
            0 < self.repetition_penalty <= 10,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0 and at most 10",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "between -2 and 2")
        ok = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        ok = ok and len(self.stop) <= MAX_STOP_STRINGS
        _check(ok, "stop", self.stop, f"a tuple of at most {MAX_STOP_STRINGS} non-empty strings")
        _check(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "true or false")
        _check(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        ok = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        _check(ok, "logprobs", self.logprobs, f"between 0 and {MAX_LOGPROBS}")


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

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompt_token_ids is None):
            raise InvalidRequest("give exactly one of prompt and prompt_token_ids", "prompt")
        _check(isinstance(self.prompt, str | None), "prompt", self.prompt, "a string")
        ok = self.timeout_s is None or (_is_finite(self.timeout_s) and self.timeout_s > 0)
        _check(ok, "timeout_s", self.timeout_s, "a number of seconds above 0")


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One generated token, its natural-log probability and the likeliest alternatives (best first)."""

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


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What is new of an answer since the last piece. The finished one has `finish_reason` and `usage`."""

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

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
