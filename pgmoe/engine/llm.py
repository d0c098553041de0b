"""Offline generation: prompts in, answers out, in the caller's own thread."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from transformers import PreTrainedTokenizerBase

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine, StepOutput
from pgmoe.engine.interrupts import interrupts_deferred
from pgmoe.engine.memory_plan import MemoryPlan
from pgmoe.engine.sequence import Sequence as Running
from pgmoe.engine.tiers import Progress
from pgmoe.layout import ExpertLayer
from pgmoe.metrics.stats import EngineStats
from pgmoe.request import Completion, ModelInfo, Request, RequestOutput, SamplingParams
from pgmoe.routing import Gating

Prompt = str | Sequence[int]
"""Text, or token ids."""


class LLM:
    """A model for scripts and notebooks. Not for several threads; servers use AsyncEngine."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
        wrap_gating: Callable[[Gating], Gating] | None = None,
        **options: object,
    ) -> None:
        """Load `model`; the options are EngineConfig's. Raises ConfigError or CheckpointError.

        See `pgmoe.engine.assembly.assemble` for `wrap_gating`.
        """
        config = EngineConfig.parse({"model": os.fspath(model), **options})
        self._engine = Engine(config, progress, wrap_gating)
        self._ids = (f"offline-{n}" for n in itertools.count())
        self._news: dict[str, deque[StepOutput]] = {}  # of open requests, until their callers take it
        self._busy = False

    @property
    def info(self) -> ModelInfo:
        """What is served."""
        return self._engine.info

    @property
    def memory(self) -> MemoryPlan:
        """What the device's memory is for."""
        return self._engine.memory

    @property
    def stats(self) -> EngineStats:
        """What was counted so far."""
        return self._engine.stats

    @property
    def expert_layers(self) -> tuple[ExpertLayer, ...]:
        """The model's routed experts, a layer each."""
        return self._engine.loaded.layers

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one."""
        return self._engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> list[Completion]:
        """Answer prompts, in their order; the `n` answers of a prompt one after the other.

        `add_special_tokens=False` is for text that a chat template has given its special tokens already.
        Raises InvalidRequest for a bad prompt before any is computed; an error that meets one ends all.
        """
        batch = [prompts] if _is_one(prompts) else prompts
        sequences = [self._accept(p, params, add_special_tokens) for p in batch]  # type: ignore[arg-type]
        waiting = deque(sequences)
        answers: list[Completion] = []
        try:
            for sequence in sequences:
                pieces: list[list[RequestOutput]] = [[] for _ in range(sequence.params.n)]
                while not all(each and each[-1].finished for each in pieces):
                    while waiting and self._engine.has_room(waiting[0].params.n):
                        self._add(waiting.popleft())
                    self._step()
                    for piece in self._take(sequence.request_id):
                        pieces[piece.index].append(piece)
                answers += map(Completion.join, pieces)
        finally:
            self._drop(s.request_id for s in sequences)
        return answers

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, add_special_tokens: bool = True
    ) -> Iterator[RequestOutput]:
        """The pieces of an answer, or of `n`, as they come. Closing the iterator ends the generation.

        Several may be open, and `generate` called between pieces: all go on together. Raises InvalidRequest
        at once, other errors from the iterator.
        """
        return self._pieces(self._accept(prompt, params, add_special_tokens))

    def close(self) -> None:
        """End open streams, free files and threads. May be called again."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, prompt: Prompt, params: SamplingParams | None, add_special_tokens: bool) -> Running:
        request = Request(
            request_id=next(self._ids),
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else tuple(prompt),
            params=params or SamplingParams(),
            add_special_tokens=add_special_tokens,
        )
        return self._engine.accept(request)

    def _pieces(self, sequence: Running) -> Iterator[RequestOutput]:
        self._add(sequence)
        unfinished = sequence.params.n
        try:
            while unfinished:
                for piece in self._take(sequence.request_id):
                    unfinished -= piece.finished
                    yield piece
                if unfinished:
                    self._step()
        finally:
            self._drop([sequence.request_id])

    def _add(self, sequence: Running) -> None:
        self._busy = True
        try:
            self._engine.add(sequence)
        finally:
            self._busy = False
        self._news[sequence.request_id] = deque()

    def _step(self) -> None:
        """One step, whosever turn it is. Ctrl-C waits for its end: half a step would spoil an answer."""
        self._busy = True
        try:
            with interrupts_deferred():
                for output in self._engine.step():
                    if output.request_id in self._news:
                        self._news[output.request_id].append(output)
        finally:
            self._busy = False

    def _take(self, request_id: str) -> Iterator[RequestOutput]:
        """What is new of one request, removed. Raises the error that ended it."""
        news = self._news.get(request_id)
        while news:
            output = news.popleft()
            if output.error is not None:
                raise output.error
            assert output.piece is not None
            yield output.piece

    def _drop(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._engine.abort(request_id)
            self._news.pop(request_id, None)
        # The garbage collector may close a forgotten stream in the midst of a step; the next one will do.
        if self._engine.has_work and not self._busy:
            self._step()


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and all(isinstance(p, int) for p in prompts))
