"""From a request to a sequence: everything that can be wrong with a request is found here."""

from __future__ import annotations

import time

from transformers import PreTrainedTokenizerBase

from pgmoe.engine.answer_text import AnswerText
from pgmoe.engine.guide_compiler import GuideCompiler
from pgmoe.engine.logit_bias import check_logit_bias
from pgmoe.engine.memory_plan import MemoryPlan
from pgmoe.engine.model_facts import ModelFacts
from pgmoe.engine.sampler import Sampler
from pgmoe.engine.sequence import Sequence
from pgmoe.errors import InvalidRequest, PromptTooLong
from pgmoe.request import ModelInfo, Request, SamplingParams
from pgmoe.units import format_bytes


class Intake:
    """Tokenises and checks requests. Holds no state; any thread may use it."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: PreTrainedTokenizerBase | None,
        facts: ModelFacts,
        guides: GuideCompiler,
        memory: MemoryPlan,
    ) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._facts = facts
        self._guides = guides
        self._memory = memory

    def accept(self, request: Request) -> Sequence:
        """The first answer to generate, which knows the others that are wanted.

        Raises InvalidRequest or PromptTooLong naming value, limit and way out.
        """
        self._check_params(request.params)
        prompt = self._token_ids(request)
        start = self._facts.begin(prompt)
        max_tokens = self._max_tokens(prompt, request.params.max_tokens, len(start))
        self._check_answers(request.params.n, len(start) + max_tokens)
        now = time.perf_counter()
        answers = [
            self._answer(request, index, prompt, start, max_tokens, now) for index in range(request.params.n)
        ]
        first, first.siblings = answers[0], answers[1:]
        return first

    def _answer(
        self,
        request: Request,
        index: int,
        prompt: tuple[int, ...],
        start: tuple[int, ...],
        max_tokens: int,
        now: float,
    ) -> Sequence:
        params = request.params
        guide = None if params.response_format is None else self._guides.compile(params.response_format)
        return Sequence(
            key=f"{request.request_id}/{index}" if index else request.request_id,
            request_id=request.request_id,
            index=index,
            prompt_token_ids=prompt,
            start_token_ids=start,
            params=params,
            max_tokens=max_tokens,
            sampler=Sampler(params, start, choice=index, guide=guide),
            text=AnswerText(self._tokenizer, params.stop, start),
            submitted_s=now,
            deadline_s=None if request.timeout_s is None else now + request.timeout_s,
            priority=request.priority,
        )

    def _check_params(self, params: SamplingParams) -> None:
        """What this model and this engine cannot do."""
        check_logit_bias(params, self._info.vocab_size)
        if params.prompt_logprobs is not None and self._info.is_encoder_decoder:
            raise InvalidRequest(
                f"prompt_logprobs {params.prompt_logprobs}: {self._info.name} reads its prompts with an "
                "encoder, which predicts no tokens; leave it out",
                "prompt_logprobs",
            )
        if params.prompt_logprobs is not None and not self._memory.paged:
            raise InvalidRequest(
                f"prompt_logprobs {params.prompt_logprobs}: {self._info.name} reads each prompt in one step "
                "here, without room for the logits of all its tokens (batch_invariant, or a model that has "
                "caches of its own); leave it out",
                "prompt_logprobs",
            )

    def _check_answers(self, num_answers: int, num_tokens: int) -> None:
        """Whether there is ever room for so many side by side."""
        fitting = self._memory.max_running
        if not self._memory.paged:
            fitting = min(fitting, self._memory.num_blocks // self._memory.kv.request_blocks(0, num_tokens))
        if num_answers > fitting:
            raise InvalidRequest(
                f"n {num_answers}: at most {fitting} answers of {num_tokens} tokens, prompt included, are "
                "generated at once; ask for fewer or shorter ones",
                "n",
            )

    def _token_ids(self, request: Request) -> tuple[int, ...]:
        ids = request.prompt_token_ids
        if ids is None:
            assert request.prompt is not None
            ids = self._tokenize(request.prompt, request.add_special_tokens)
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token", "prompt")
        size = self._info.vocab_size
        wrong = next(
            (i for i in ids if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < size), None
        )
        if wrong is not None:
            raise InvalidRequest(f"prompt token {wrong!r} is not an id from 0 to {size - 1}", "prompt")
        return ids

    def _tokenize(self, prompt: str, add_special_tokens: bool) -> tuple[int, ...]:
        if self._tokenizer is None:
            raise InvalidRequest(f"{self._info.name} has no tokenizer; send prompt_token_ids", "prompt")
        if not prompt:
            raise InvalidRequest("the prompt is empty; give at least one character", "prompt")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not valid Unicode: {error}", "prompt") from error
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        return tuple(ids)

    def _max_tokens(self, prompt: tuple[int, ...], wanted: int | None, num_start: int) -> int:
        """Answer tokens that fit; an encoder-decoder's answer has a context of its own."""
        limit = self._info.max_model_len
        own_context = self._info.is_encoder_decoder
        used = num_start if own_context else len(prompt)
        if len(prompt) > (limit if own_context else limit - 1):
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, the context {limit}{self._because()}; shorten it",
                "prompt",
            )
        if wanted is None:
            return limit - used
        if used + wanted > limit:
            raise PromptTooLong(
                f"{used} prompt tokens and max_tokens {wanted} exceed the context of {limit}"
                f"{self._because()}; ask for at most {limit - used} tokens or shorten the prompt",
                "max_tokens",
            )
        return wanted

    def _because(self) -> str:
        """What limits the context, where it is not the model or `max_model_len`."""
        if not self._memory.limits_length:
            return ""
        return f" that {format_bytes(self._memory.kv_bytes)} of kv_memory hold"
