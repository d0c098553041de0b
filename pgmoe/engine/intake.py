"""From a request to a sequence: everything that can be wrong with a request is found here."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedTokenizerBase

from pgmoe.engine.answer_text import AnswerText
from pgmoe.engine.memory_plan import MemoryPlan
from pgmoe.engine.runner import ModelRunner
from pgmoe.engine.sampler import Sampler
from pgmoe.engine.sequence import Sequence
from pgmoe.errors import InvalidRequest, PromptTooLong
from pgmoe.request import ModelInfo, Request
from pgmoe.units import format_bytes


class Intake:
    """Tokenises and checks requests. Holds no state; any thread may use it."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: PreTrainedTokenizerBase | None,
        runner: ModelRunner,
        device: torch.device,
        memory: MemoryPlan,
    ) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._runner = runner
        self._device = device
        self._memory = memory

    def accept(self, request: Request) -> Sequence:
        """The sequence to run. Raises InvalidRequest or PromptTooLong naming value, limit and way out."""
        prompt = self._token_ids(request)
        now = time.perf_counter()
        pending = self._runner.begin(prompt)
        max_tokens = self._max_tokens(prompt, request.params.max_tokens, len(pending))
        return Sequence(
            request_id=request.request_id,
            prompt_token_ids=prompt,
            params=request.params,
            max_tokens=max_tokens,
            sampler=Sampler(request.params, pending, self._device),
            text=AnswerText(self._tokenizer, request.params.stop, pending),
            submitted_s=now,
            deadline_s=None if request.timeout_s is None else now + request.timeout_s,
            kv_bytes=self._memory.kv.request_bytes(len(prompt), len(pending) + max_tokens),
            pending=pending,
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
        """Answer tokens that fit; an encoder-decoder's answer has a context of its own.

        An answer of no given length ends where a request's share of the KV memory does, but that of a prompt
        which fills half of a share or more goes on to the end of the context.
        """
        limit = self._info.max_model_len
        own_context = self._info.is_encoder_decoder
        used = num_start if own_context else len(prompt)
        if len(prompt) > (limit if own_context else limit - 1):
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, the context {limit}{self._because()}; shorten it",
                "prompt",
            )
        if wanted is None:
            share = self._memory.share_tokens
            return (limit if 2 * used > share else share) - used
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
