"""How the next token of one request is chosen.

Shape letters: V vocabulary, C candidates left to draw from, N tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import LongTensor, Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from pgmoe.engine.penalties import AnswerPenalty
from pgmoe.errors import NonFiniteLogits
from pgmoe.request import SamplingParams

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: the division could leave the range of fp32."""
_NUCLEUS_GUESS = 1024
"""Candidates among which top_p is tried first; sorting a whole vocabulary takes milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledToken:
    """A chosen token. Log-probabilities (natural) are the model's own: no penalty, temperature or filter."""

    token_id: int
    logprob: float | None = None
    """None unless asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the likeliest tokens, best first; none of probability 0."""


class Sampler:
    """Chooses the tokens of one request, computing in fp32.

    Order, as in transformers and vLLM: penalties, temperature, top_k, top_p, min_p. The tokens depend on
    logits, parameters and seed alone, not on what else runs: each sampler has its own generator.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int], device: torch.device) -> None:
        self._params = params
        self._penalties = _penalties(params, len(prompt_token_ids))
        context_1N = torch.tensor([list(prompt_token_ids)], dtype=torch.long, device=device)
        self._context_1N = cast(LongTensor, context_1N)
        self._generator = None if params.temperature < GREEDY_BELOW else _generator(params.seed, device)

    def sample(self, logits_V: Tensor) -> SampledToken:
        """Choose the next token, which becomes part of the answer that the penalties see.

        `logits_V` is on the sampler's device, of any float dtype, and stays as it is; -inf forbids a token.
        Raises NonFiniteLogits if it holds NaN or +inf, or forbids every token.
        """
        logits_1V = logits_V.float().unsqueeze(0)
        scores_1V = self._penalties(self._context_1N, logits_1V) if self._penalties else logits_1V
        best, index = scores_1V[0].max(dim=-1)  # NaN, where there is one
        if not math.isfinite(best.item()):
            raise _non_finite(scores_1V)
        if self._generator is None:
            token_id = int(index.item())
        else:  # shifted to at most 0, no temperature can make them overflow
            token_id = self._draw(scores_1V - best, self._generator)
        self._remember(token_id)
        if self._params.logprobs is None:
            return SampledToken(token_id=token_id)
        return _with_logprobs(token_id, logits_1V[0], self._params.logprobs)

    def _remember(self, token_id: int) -> None:
        if self._penalties:
            longer = torch.cat([self._context_1N, self._context_1N.new_tensor([[token_id]])], dim=1)
            self._context_1N = cast(LongTensor, longer)

    def _draw(self, scores_1V: Tensor, generator: torch.Generator) -> int:
        if self._params.temperature != 1:
            scores_1V = TemperatureLogitsWarper(float(self._params.temperature))(self._context_1N, scores_1V)
        scores_1C, ids_C = self._candidates(scores_1V)
        if self._params.min_p > 0:
            scores_1C = MinPLogitsWarper(self._params.min_p)(self._context_1N, scores_1C)
        choice = torch.multinomial(scores_1C[0].softmax(dim=-1), 1, generator=generator)
        return int((choice if ids_C is None else ids_C[choice]).item())

    def _candidates(self, scores_1V: Tensor) -> tuple[Tensor, Tensor | None]:
        """What top_k and top_p leave: scores (1, C), -inf where dropped, and ids (C), None for all of V."""
        top_k, top_p = self._params.top_k, self._params.top_p
        if not top_k and top_p == 1:
            return scores_1V, None
        scores_1C, ids_1C = scores_1V.topk(min(top_k or _NUCLEUS_GUESS, scores_1V.shape[-1]), dim=-1)
        mass = 1.0
        if not top_k:  # the nucleus is a share of the whole vocabulary, not of the likeliest ones
            mass = math.exp((scores_1C.logsumexp(dim=-1) - scores_1V.logsumexp(dim=-1)).item())
            if mass < top_p:
                return TopPLogitsWarper(top_p)(self._context_1N, scores_1V), None
        if top_p < 1:
            scores_1C = TopPLogitsWarper(min(1.0, top_p / mass))(self._context_1N, scores_1C)
        return scores_1C, ids_1C[0]


def _penalties(params: SamplingParams, num_prompt_tokens: int) -> LogitsProcessorList:
    penalties = LogitsProcessorList()
    if params.repetition_penalty != 1:
        penalties.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if params.presence_penalty or params.frequency_penalty:
        penalties.append(AnswerPenalty(params.presence_penalty, params.frequency_penalty, num_prompt_tokens))
    return penalties


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()  # from the operating system
    else:
        generator.manual_seed(seed)
    return generator


def _with_logprobs(token_id: int, logits_V: Tensor, num_top: int) -> SampledToken:
    logprobs_V = logits_V.log_softmax(dim=-1)
    values, ids = logprobs_V.topk(min(num_top, logprobs_V.shape[-1]))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return SampledToken(
        token_id=token_id,
        logprob=logprobs_V[token_id].item(),
        top=tuple((id_, value) for id_, value in pairs if math.isfinite(value)),
    )


def _non_finite(scores: Tensor) -> NonFiniteLogits:
    num_nan, num_inf = int(scores.isnan().sum()), int(scores.isinf().sum())
    return NonFiniteLogits(
        f"of {scores.numel()} logits {num_nan} are NaN and {num_inf} infinite: no token can be chosen. "
        "Check the model's weights; if it runs in float16, load it in bfloat16 or float32"
    )
