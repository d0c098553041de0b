"""Answers in OpenAI's shapes: chat and text, whole and in chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

from pgmoe.request import RequestOutput, TokenLogprob, Usage

Json = dict[str, Any]


def usage_json(usage: Usage) -> Json:
    """OpenAI's `usage`, and what the answer cost in experts beside it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "experts": {
            "hits": usage.expert_hits,
            "misses": usage.expert_misses,
            "bytes": usage.expert_bytes,
            "stall_s": usage.expert_stall_s,
        },
    }


@dataclass
class AnswerFormat(ABC):
    """One answer on its way out."""

    request_id: str
    model: str
    logprobs: bool
    """Whether the caller asked for log-probabilities."""
    created: int = field(default_factory=lambda: int(time.time()))

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def whole(self, answer: RequestOutput) -> Json:
        """The whole answer."""
        assert answer.usage is not None, "a finished answer has its usage"
        return self._frame(self.whole_object, [self._choice(answer)], usage=usage_json(answer.usage))

    def chunk(self, piece: RequestOutput) -> Json:
        """One piece of a stream."""
        return self._frame(self.chunk_object, [self._delta(piece)])

    def usage_chunk(self, usage: Usage) -> Json:
        """The chunk without choices that ends a stream with `include_usage`."""
        return self._frame(self.chunk_object, [], usage=usage_json(usage))

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
    _begun: bool = False

    def _choice(self, answer: RequestOutput) -> Json:
        return self._finish({"message": {"role": "assistant", "content": answer.text}}, answer)

    def _delta(self, piece: RequestOutput) -> Json:
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return self._finish({"delta": {**role, "content": piece.text}}, piece)

    def _finish(self, body: Mapping[str, Any], piece: RequestOutput) -> Json:
        content = [_chat_logprob(entry) for entry in piece.logprobs]
        logprobs = {"content": content, "refusal": None} if self.logprobs else None
        return {"index": 0, **body, "logprobs": logprobs, "finish_reason": piece.finish_reason}


@dataclass
class TextFormat(AnswerFormat):
    """`text_completion`, whole and in chunks."""

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    _offset: int = 0

    def _choice(self, answer: RequestOutput) -> Json:
        logprobs = self._logprobs(answer.logprobs) if self.logprobs else None
        return {"index": 0, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def _delta(self, piece: RequestOutput) -> Json:
        return self._choice(piece)

    def _logprobs(self, entries: Iterable[TokenLogprob]) -> Json:
        entries = list(entries)
        *offsets, self._offset = accumulate((len(e.text) for e in entries), initial=self._offset)
        return {
            "tokens": [e.text for e in entries],
            "token_logprobs": [e.logprob for e in entries],
            "top_logprobs": [{text: logprob for _, text, logprob in e.top} for e in entries],
            "text_offset": offsets,
        }


def _chat_logprob(entry: TokenLogprob) -> Json:
    top = [_token_json(text, logprob) for _, text, logprob in entry.top]
    return {**_token_json(entry.text, entry.logprob), "top_logprobs": top}


def _token_json(text: str, logprob: float) -> Json:
    raw = None if "\ufffd" in text else list(text.encode())  # part of a character: OpenAI allows null
    return {"token": text, "logprob": logprob, "bytes": raw}
