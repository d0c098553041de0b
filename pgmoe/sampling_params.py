"""How the tokens of an answer are chosen: the parameters of a request, and their ranges."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.checks import check, is_finite, is_integer
from pgmoe.errors import InvalidRequest
from pgmoe.response_format import ResponseFormat

MAX_ANSWERS = 16
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_BIASED_TOKENS = 1024
MAX_BIAS = 100

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("n", "top_k")
_OPTIONAL_INTEGERS = ("max_tokens", "seed", "logprobs", "prompt_logprobs")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Raises InvalidRequest for a value out of its range.

    Order: response_format and logit_bias, penalties, temperature, top_k, top_p, min_p.
    """

    max_tokens: int | None = None
    """Most tokens to generate; up to the end of the context where None."""
    n: int = 1
    """Answers of the one prompt, at most MAX_ANSWERS; they differ in the random numbers they are drawn by."""
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
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once; at most MAX_BIASED_TOKENS."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token (benchmarks)."""
    seed: int | None = None
    """Two requests with the same seed, prompt and parameters get the same answers."""
    logprobs: int | None = None
    """Report each token's log-probability and those of this many likeliest ones (0 to 20)."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens, each given those before it."""
    response_format: ResponseFormat | None = None
    """The form that the answer must have; any where None."""

    def __post_init__(self) -> None:
        self._check_types()
        self._check_shaping()
        check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        check(1 <= self.n <= MAX_ANSWERS, "n", self.n, f"between 1 and {MAX_ANSWERS}")
        ok = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        ok = ok and len(self.stop) <= MAX_STOP_STRINGS
        check(ok, "stop", self.stop, f"a tuple of at most {MAX_STOP_STRINGS} non-empty strings")
        check(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            check(value is None or 0 <= value <= MAX_LOGPROBS, name, value, f"between 0 and {MAX_LOGPROBS}")
        _check_bias(self.logit_bias)
        if self.response_format is not None and self.ignore_eos:
            raise InvalidRequest(
                "ignore_eos must be false with a response_format, which says where the answer ends",
                "ignore_eos",
            )

    def _check_types(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            check(is_finite(value), name, value, "a finite number")
        for name in _INTEGERS + _OPTIONAL_INTEGERS:
            value = getattr(self, name)
            ok = is_integer(value) or (value is None and name in _OPTIONAL_INTEGERS)
            check(ok, name, value, "an integer")
        check(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "true or false")
        ok = isinstance(self.response_format, ResponseFormat | None)
        check(ok, "response_format", self.response_format, "a ResponseFormat")

    def _check_shaping(self) -> None:
        """Ranges of what shapes the distribution."""
        check(0 <= self.temperature <= 10, "temperature", self.temperature, "between 0 and 10")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        repetition = self.repetition_penalty
        check(0 < repetition <= 10, "repetition_penalty", repetition, "above 0 and at most 10")
        for name in ("presence_penalty", "frequency_penalty"):
            check(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "between -2 and 2")


def _check_bias(bias: tuple[tuple[int, float], ...]) -> None:
    param = "logit_bias"
    check(isinstance(bias, tuple), param, bias, "a tuple of (token id, bias)")
    check(len(bias) <= MAX_BIASED_TOKENS, param, len(bias), f"at most {MAX_BIASED_TOKENS} entries")
    seen: set[int] = set()
    for entry in bias:
        check(isinstance(entry, tuple) and len(entry) == 2, param, entry, "pairs of token id and bias")
        token_id, value = entry
        check(is_integer(token_id) and token_id >= 0, param, token_id, "by token ids of 0 or more")
        ok = is_finite(value) and abs(value) <= MAX_BIAS
        check(ok, param, value, f"between -{MAX_BIAS} and {MAX_BIAS} for token {token_id}")
        check(token_id not in seen, param, token_id, "of distinct token ids")
        seen.add(token_id)
