"""One request on its way through the model: what is computed, what is said, what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pgmoe.engine.answer_text import AnswerText
from pgmoe.engine.sampler import Sampler
from pgmoe.request import SamplingParams, Usage


@dataclass
class Sequence:
    """The engine's state of one request. Only the step thread changes it, but for `aborted`."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    sampler: Sampler
    text: AnswerText
    submitted_s: float
    deadline_s: float | None
    kv_bytes: int = 0
    """What its KV cache comes to if the answer has `max_tokens`."""
    pending: list[int] = field(default_factory=list)
    """Token ids that the model has not seen yet, prompt or last answer token."""
    kv_cache: Any = None
    """transformers' own cache object; None before the first step."""
    encoder_outputs: Any = None
    """Of an encoder-decoder model; computed in the first step."""
    num_generated: int = 0
    aborted: bool = False
    broken: bool = False
    """Whether a step of it did not come to an end, so that its state is of no use."""
    first_step_s: float | None = None
    last_token_s: float | None = None
    hits: int = 0
    misses: int = 0
    expert_bytes: int = 0
    stall_s: float = 0.0

    def release(self) -> None:
        """Give back what it holds of the device's memory."""
        self.kv_cache = self.encoder_outputs = None

    @property
    def usage(self) -> Usage:
        """What it cost so far."""
        return Usage(
            prompt_tokens=len(self.prompt_token_ids),
            completion_tokens=self.num_generated,
            expert_hits=self.hits,
            expert_misses=self.misses,
            expert_bytes=self.expert_bytes,
            expert_stall_s=self.stall_s,
        )
