"""Answers in OpenAI's shapes: chat and text, whole and in chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar

from deployments.echo import Echo
from deployments.openai_usage import usage_json
from pgmoe.request import RequestOutput, TokenLogprob, Usage

Json = dict[str, Any]
LEAST_LOGPROB = -9999.0
"""What OpenAI has for the log-probability of a token that is impossible; JSON has no -inf."""


@dataclass
class AnswerFormat(ABC):
    """The answers to one request on their way out."""

    request_id: str
    model: str
    logprobs: bool
    """Whether the caller asked for log-probabilities."""
    created: int = field(default_factory=lambda: int(time.time()))
    _usages: list[Usage] = field(default_factory=list)
    """Of the answers that have ended."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def whole(self, answers: Iterable[RequestOutput]) -> Json:
        """All answers, by index."""
        choices = [self._choice(self._note(answer)) for answer in answers]
        return self._frame(self.whole_object, choices, usage=usage_json(self._usages))

    def chunk(self, piece: RequestOutput) -> Json:
        """One piece of a stream."""
        return self._frame(self.chunk_object, [self._delta(self._note(piece))])

    def usage_chunk(self) -> Json:
        """The chunk without choices that ends a stream with `include_usage`, after all others."""
        return self._frame(self.chunk_object, [], usage=usage_json(self._usages))

    def _note(self, piece: RequestOutput) -> RequestOutput:
        """Keep what later ones need; returns what is to be shown."""
        if piece.usage is not None:
            self._usages.append(piece.usage)
        return piece

    def _frame(self, kind: str, choices: list[Json], **more: Json) -> Json:
        head = {"id": f"{self.id_prefix}-{self.request_id}", "object": kind, "created": self.created}
        return {**head, "model": self.model, "choices": choices, **more}

    @abstractmethod
    def _choice(self, answer: RequestOutput) -> Json: ...

    @abstractmethod
    def _delta(self, piece: RequestOutput) -> Json: ...


@dataclass
class ChatFormat(AnswerFormat):
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    _begun: set[int] = field(default_factory=set)

    def _choice(self, answer: RequestOutput) -> Json:
        return self._finish({"message": {"role": "assistant", "content": answer.text}}, answer)

    def _delta(self, piece: RequestOutput) -> Json:
        role = {} if piece.index in self._begun else {"role": "assistant"}
        self._begun.add(piece.index)
        return self._finish({"delta": {**role, "content": piece.text}}, piece)

    def _finish(self, body: Mapping[str, Any], piece: RequestOutput) -> Json:
        content = [_chat_logprob(entry) for entry in piece.logprobs]
        logprobs = {"content": content, "refusal": None} if self.logprobs else None
        return {"index": piece.index, **body, "logprobs": logprobs, "finish_reason": piece.finish_reason}


@dataclass
class TextFormat(AnswerFormat):
    """`text_completion`, whole and in chunks."""

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    echo: Echo | None = None
    """The prompt, to be repeated before each answer."""
    prompt_only: bool = False
    """Whether nothing follows the prompt."""
    _prompt_logprobs: Sequence[TokenLogprob | None] = ()
    _ends: dict[int, int] = field(default_factory=dict)
    """Where the next token of each answer that has begun stands in its text."""

    def _note(self, piece: RequestOutput) -> RequestOutput:
        self._prompt_logprobs = piece.prompt_logprobs or self._prompt_logprobs  # come before all else
        if self.prompt_only and piece.usage is not None:
            usage = replace(piece.usage, completion_tokens=0)
            piece = replace(piece, text="", logprobs=(), finish_reason="length", usage=usage)
        return super()._note(piece)

    def _choice(self, answer: RequestOutput) -> Json:
        repeat = self.echo if answer.index not in self._ends else None
        logprobs = self._logprobs(answer, repeat) if self.logprobs else None
        text = answer.text if repeat is None else repeat.text + answer.text
        self._ends.setdefault(answer.index, 0)
        return {
            "index": answer.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
        }

    def _delta(self, piece: RequestOutput) -> Json:
        return self._choice(piece)

    def _logprobs(self, answer: RequestOutput, repeat: Echo | None) -> Json:
        begin = self._ends.get(answer.index, 0 if repeat is None else len(repeat.text))
        texts = [entry.text for entry in answer.logprobs]
        *offsets, self._ends[answer.index] = accumulate(map(len, texts), initial=begin)
        entries: list[TokenLogprob | None] = list(answer.logprobs)
        if repeat is not None:
            texts = repeat.tokens(self._prompt_logprobs) + texts
            offsets = repeat.offsets + offsets
            entries = [*self._prompt_logprobs, *entries]
        return {
            "tokens": texts,
            "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else _top(entry) for entry in entries],
            "text_offset": offsets,
        }


def _top(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest by their texts, the likeliest of several with the same, and the token itself."""
    top: dict[str, float] = {}
    for text, logprob in (*((text, logprob) for _, text, logprob in entry.top), (entry.text, entry.logprob)):
        top.setdefault(text, _finite(logprob))
    return top


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _chat_logprob(entry: TokenLogprob) -> Json:
    top = [_token_json(text, logprob) for _, text, logprob in entry.top]
    return {**_token_json(entry.text, entry.logprob), "top_logprobs": top}


def _token_json(text: str, logprob: float) -> Json:
    raw = None if "\ufffd" in text else list(text.encode())  # part of a character: OpenAI allows null
    return {"token": text, "logprob": _finite(logprob), "bytes": raw}
