"""How many prompt tokens a step takes beside the answers under way. Pure: told what steps took.

A step's time is taken as that of the answers' tokens alone, plus a constant, plus so much for each prompt
token; the last two are fitted to the newest steps that had both. With experts that stream, the constant is
most of it: few prompt tokens touch nearly as many experts as many do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean, median

_NUM_STEPS = 32
_FEW_TOKENS = 16
"""Of a prompt; where not even these fit, nothing is gained by taking less than all."""


@dataclass(frozen=True)
class StepTime:
    """What one step had to do, and how long it took."""

    num_answers: int
    """With one token each."""
    num_prompt_tokens: int
    seconds: float


class StepPace:
    """Keeps the time from one token of an answer to the next within a bound."""

    def __init__(self, prefill_chunk: int, max_inter_token_s: float | None) -> None:
        """`prefill_chunk` prompt tokens at most; with a bound of None always as many."""
        self._chunk = prefill_chunk
        self._bound_s = max_inter_token_s
        self._answers_s: deque[float] = deque(maxlen=_NUM_STEPS)
        self._mixed: deque[tuple[int, float]] = deque(maxlen=_NUM_STEPS)
        self._prompt_s: deque[float] = deque(maxlen=_NUM_STEPS)

    def observe(self, step: StepTime) -> None:
        """A step has run."""
        if not step.num_prompt_tokens:
            self._answers_s.append(step.seconds)
            return
        seconds = step.seconds
        if step.num_answers and self._answers_s:
            seconds = max(0.0, seconds - median(self._answers_s))
            self._mixed.append((step.num_prompt_tokens, seconds))
        self._prompt_s.append(seconds / step.num_prompt_tokens)

    @property
    def prompt_token_s(self) -> float | None:
        """Seconds that a prompt token took lately, beside answers or alone; None where none was computed."""
        return fmean(self._prompt_s) if self._prompt_s else None

    def max_prompt_tokens(self, num_answers: int) -> int:
        """For a step beside so many answers."""
        if self._bound_s is None or not num_answers or not self._answers_s:
            return self._chunk
        if not self._mixed:
            return min(self._chunk, _FEW_TOKENS)
        constant, slope = self._fit()
        room = self._bound_s - median(self._answers_s) - constant
        fitting = self._chunk if slope == 0 and room > 0 else int(room / slope) if slope else 0
        return min(self._chunk, fitting) if fitting >= _FEW_TOKENS else self._chunk

    def _fit(self) -> tuple[float, float]:
        """Least squares of the extra seconds over prompt tokens, neither part below 0."""
        mean_n, mean_s = (fmean(values) for values in zip(*self._mixed, strict=True))
        spread = sum((n - mean_n) ** 2 for n, _ in self._mixed)
        if not spread:
            return 0.0, mean_s / mean_n
        slope = sum((n - mean_n) * (s - mean_s) for n, s in self._mixed) / spread
        if slope <= 0:
            return mean_s, 0.0
        constant = mean_s - slope * mean_n
        return (constant, slope) if constant >= 0 else (0.0, mean_s / mean_n)
