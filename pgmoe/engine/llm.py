"""Offline generation: prompts in, answers out, in the caller's own thread."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import TracebackType

from transformers import PreTrainedTokenizerBase

from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import Progress
from pgmoe.engine.engine import Engine
from pgmoe.metrics.stats import EngineStats
from pgmoe.request import Completion, ModelInfo, Request, RequestOutput, SamplingParams

Prompt = str | Sequence[int]
"""Text, or token ids."""


class LLM:
    """A model for scripts and notebooks. Not for several threads; servers use AsyncEngine."""

    def __init__(self, model: str, *, progress: Progress | None = None, **options: object) -> None:
        """Load `model`; the options are EngineConfig's. Raises ConfigError or CheckpointError."""
        self._engine = Engine(EngineConfig.parse({"model": model, **options}), progress)
        self._ids = (f"offline-{n}" for n in itertools.count())

    @property
    def info(self) -> ModelInfo:
        """What is served."""
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        """What was counted so far."""
        return self._engine.stats

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one."""
        return self._engine.tokenizer

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Answer prompts, in their order. Raises InvalidRequest for a bad one before any is computed."""
        batch = [prompts] if _is_one(prompts) else list(prompts)
        sequences = [self._engine.accept(_request(next(self._ids), p, params)) for p in batch]  # type: ignore[arg-type]
        waiting = list(sequences)[::-1]
        pieces: dict[str, list[RequestOutput]] = {s.request_id: [] for s in sequences}
        try:
            while waiting or self._engine.has_work:
                while waiting and self._engine.has_room:
                    self._engine.add(waiting.pop())
                for piece in self._step():
                    pieces[piece.request_id].append(piece)
        finally:
            self._abort([s.request_id for s in sequences])
        return [Completion.join(pieces[s.request_id]) for s in sequences]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """The pieces of one answer as they come. Closing the iterator ends the generation."""
        sequence = self._engine.accept(_request(next(self._ids), prompt, params))
        self._engine.add(sequence)
        try:
            while self._engine.has_work:
                yield from self._step()
        finally:
            self._abort([sequence.request_id])

    def close(self) -> None:
        """Free files and threads."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(self) -> list[RequestOutput]:
        pieces = []
        for output in self._engine.step():
            if output.error is not None:
                raise output.error
            assert output.piece is not None
            pieces.append(output.piece)
        return pieces

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._engine.abort(request_id)
        if self._engine.has_work:
            self._engine.step()


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or all(isinstance(p, int) for p in prompts)


def _request(request_id: str, prompt: Prompt, params: SamplingParams | None) -> Request:
    text = prompt if isinstance(prompt, str) else None
    ids = None if isinstance(prompt, str) else tuple(prompt)
    return Request(
        request_id=request_id, prompt=text, prompt_token_ids=ids, params=params or SamplingParams()
    )
