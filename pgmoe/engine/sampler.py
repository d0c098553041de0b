"""What the next token of one answer depends on, besides the logits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pgmoe.engine.guide import Guide
from pgmoe.engine.logit_bias import LogitBias
from pgmoe.engine.penalties import seen_tokens
from pgmoe.engine.randomness import uniform
from pgmoe.sampling_params import SamplingParams

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: the division could leave the range of fp32."""


class Sampler:
    """One answer's parameters, its random numbers, and what must be remembered of its tokens.

    `pgmoe.engine.batch_sampler.sample` chooses by it. The tokens depend on logits, parameters, seed, choice
    and position alone, not on what else runs, so an answer that was given up is taken up again by a new
    sampler that is given its tokens.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        *,
        choice: int = 0,
        guide: Guide | None = None,
        answer_token_ids: Sequence[int] = (),
        seed: int | None = None,
    ) -> None:
        """`choice` says which of the `n` answers this is.

        `guide` is at the answer's beginning and this sampler's own; `answer_token_ids` were chosen earlier.
        `seed` is that of an earlier sampler, where `params` have none; where that is None, too, it is 64 bits
        from the operating system. Raises GenerationFailed if the guide does not take the tokens.
        """
        self.params = params
        self.guide = guide
        self.bias = LogitBias(params)
        self.seen = seen_tokens(params, prompt_token_ids)
        self.num_tokens = 0
        if params.seed is not None:
            seed = params.seed
        self.seed = secrets.randbits(64) - 2**63 if seed is None else seed
        self._choice = choice
        for token_id in answer_token_ids:
            self.remember(token_id)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a random number."""
        return self.params.temperature < GREEDY_BELOW

    @property
    def reshapes(self) -> bool:
        """Whether logits are changed before the likeliest is found."""
        return self.guide is not None or self.seen is not None or len(self.bias) > 0

    @property
    def finished(self) -> bool:
        """Whether the answer has the form that was asked for and only an end-of-sequence token may follow."""
        return self.guide is not None and self.guide.finished

    def uniform(self) -> float:
        """The random number in [0, 1) of the next token; the same until it is remembered."""
        return uniform(self.seed, self._choice, self.num_tokens)

    def remember(self, token_id: int) -> None:
        """The token becomes part of the answer. Raises GenerationFailed if the guide does not take it."""
        if self.guide is not None:
            self.guide.accept(token_id)
        if self.seen is not None:
            self.seen.add(token_id)
        self.num_tokens += 1
