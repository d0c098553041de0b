"""From chosen tokens to pieces of answers."""

from __future__ import annotations

import time
from collections.abc import Container

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgmoe.engine.detokenizer import token_text
from pgmoe.engine.logprobs import prompt_logprobs
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.sequence import Sequence
from pgmoe.metrics.stats import EngineStats
from pgmoe.request import FinishReason, RequestOutput, TokenLogprob


class Answers:
    """Says what is new of an answer, and whether it ends."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, eos_token_ids: Container[int], stats: EngineStats
    ) -> None:
        self._tokenizer = tokenizer
        self._eos = eos_token_ids
        self._stats = stats

    def say(self, sequence: Sequence, token: SampledToken) -> RequestOutput:
        """The piece that this token brings."""
        self._time_token(sequence)
        begins = sequence.num_generated == 0 and sequence.index == 0
        text, reason = self._take(sequence, token.token_id)
        return RequestOutput(
            request_id=sequence.request_id,
            index=sequence.index,
            text=text,
            token_ids=(token.token_id,),
            logprobs=() if token.logprob is None else (self._logprob(token, token.logprob),),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if begins else (),
            finish_reason=reason,
            usage=sequence.usage if reason else None,
        )

    def note_prompt(self, sequence: Sequence, start: int, logits_TV: Tensor) -> None:
        """Logits of the prompt's tokens from `start` on: keep the log-probabilities of those that follow."""
        assert sequence.params.prompt_logprobs is not None
        kept = sequence.prompt_logprobs
        del kept[start + 1 :]  # computed again after it gave way
        if start == 0:
            kept[:] = [None]
        following = sequence.prompt_token_ids[start + 1 : start + 1 + len(logits_TV)]
        found = prompt_logprobs(logits_TV[: len(following)], following, sequence.params.prompt_logprobs)
        kept += [self._logprob(token, token.logprob or 0.0) for token in found]

    def _take(self, sequence: Sequence, token_id: int) -> tuple[str, FinishReason | None]:
        """The text that this token completes, and why the answer ends with it, if it does."""
        sequence.num_generated += 1
        if token_id in self._eos and not sequence.params.ignore_eos:
            return sequence.text.finish().text, "stop"
        said = sequence.text.push(token_id)
        if said.stopped:
            return said.text, "stop"
        complete = sequence.sampler.finished
        if sequence.num_generated < sequence.max_tokens and not complete:
            return said.text, None
        rest = sequence.text.finish()
        return said.text + rest.text, "stop" if rest.stopped or complete else "length"

    def _logprob(self, token: SampledToken, logprob: float) -> TokenLogprob:
        top = tuple((i, token_text(self._tokenizer, i), p) for i, p in token.top)
        text = token_text(self._tokenizer, token.token_id)
        return TokenLogprob(token_id=token.token_id, text=text, logprob=logprob, top=top)

    def _time_token(self, sequence: Sequence) -> None:
        now = time.perf_counter()
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            self._stats.time_to_first_token_s.append(now - sequence.submitted_s)
        else:
            assert sequence.last_token_s is not None
            since = now - sequence.last_token_s
            sequence.max_inter_token_s = max(sequence.max_inter_token_s, since)
            self._stats.inter_token_s.append(since)
        sequence.last_token_s = now
        self._stats.generation_tokens += 1
