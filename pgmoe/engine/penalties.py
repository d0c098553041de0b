"""Penalties on tokens that stand in the answer already."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class AnswerPenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalties, which transformers lacks; they count the answer alone.

    logit[t] -= frequency * count[t] + presence * (count[t] > 0)
    (platform.openai.com/docs/advanced-usage, "Frequency and presence penalties")
    """

    def __init__(self, presence: float, frequency: float, num_prompt_tokens: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` (1, N) are prompt and answer; returns new scores (1, V)."""
        answer_A = input_ids[0, self._num_prompt_tokens :]
        counts_V = torch.bincount(answer_A, minlength=scores.shape[-1])
        return scores - self._frequency * counts_V - self._presence * (counts_V > 0)
