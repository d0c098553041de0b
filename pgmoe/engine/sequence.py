"""One answer on its way through the model: what was asked for, what is said, what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgmoe.engine.answer_text import AnswerText
from pgmoe.engine.sampler import Sampler
from pgmoe.request import SamplingParams, TokenLogprob, Usage


@dataclass(kw_only=True, eq=False)
class Sequence:
    """The engine's state of one answer. Only the step thread changes it, but for `aborted`."""

    key: str
    """Its name in the scheduler, the runner and the gating."""
    request_id: str
    index: int = 0
    """Which of the request's answers."""
    prompt_token_ids: tuple[int, ...]
    start_token_ids: tuple[int, ...]
    """What the decoder is fed first: the prompt, or an encoder-decoder's start tokens."""
    params: SamplingParams
    max_tokens: int
    sampler: Sampler
    text: AnswerText
    submitted_s: float
    deadline_s: float | None
    priority: int = 0
    siblings: list[Sequence] = field(default_factory=list)
    """Of the first answer: the others, until the prompt is computed and they begin, too."""
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    """As far as the prompt is computed, where they are asked for; said with the first token."""
    num_generated: int = 0
    aborted: bool = False
    in_doubt: bool = False
    """Whether something broke off between the model's work on it and its token."""
    first_step_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    max_inter_token_s: float = 0.0
    cached_tokens: int = 0
    num_preemptions: int = 0
    hits: int = 0
    misses: int = 0
    expert_bytes: float = 0.0
    stall_s: float = 0.0

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt's tokens are still to be reported on."""
        return self.params.prompt_logprobs is not None and self.num_generated == 0

    @property
    def usage(self) -> Usage:
        """What it cost so far."""
        first, last = self.first_token_s, self.last_token_s
        return Usage(
            prompt_tokens=len(self.prompt_token_ids),
            completion_tokens=self.num_generated,
            expert_hits=self.hits,
            expert_misses=self.misses,
            expert_bytes=round(self.expert_bytes),
            expert_stall_s=self.stall_s,
            cached_tokens=self.cached_tokens,
            queue_s=(self.first_step_s or self.submitted_s) - self.submitted_s,
            time_to_first_token_s=None if first is None else first - self.submitted_s,
            decode_s=0.0 if first is None or last is None else last - first,
            max_inter_token_s=self.max_inter_token_s,
            num_preemptions=self.num_preemptions,
        )
