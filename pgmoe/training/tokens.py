"""Documents, prompts with completions, and conversations as tokens with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pgmoe.errors import ConfigError

UNLABELLED = -100
"""The label of a token whose prediction is not scored."""
Ids = NDArray[np.int32]
Piece = tuple[str, bool]
"""A stretch of a conversation, and whether the model is to learn to say it."""


@dataclass(frozen=True)
class Row:
    """One sequence, or the two of an encoder-decoder."""

    input_ids: Ids
    labels: Ids
    """As long as `input_ids`, or for an encoder-decoder what the decoder is to say."""


class RowMaker:
    """Turns cells into tokens, as the model will meet them when it is served: a prompt is tokenised alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ConfigError where the tokenizer has no end token."""
        if tokenizer.eos_token_id is None:
            raise ConfigError("the model's tokenizer names no end token (eos_token); add it to its files")
        self._tokenizer = tokenizer
        self._end = int(tokenizer.eos_token_id)

    def make(
        self, columns: Mapping[str, Sequence[Any]], kind: Sequence[str], *, encoder_decoder: bool
    ) -> list[Row]:
        """Rows of one kind of columns. Raises ConfigError for an empty cell."""
        cells = [columns[name] for name in kind]
        for number, row in enumerate(zip(*cells, strict=True), start=1):
            if any(cell is None for cell in row):
                raise ConfigError(f"the {number}. of them has an empty cell")
        if kind[0] == "text":
            return [Row(ids, ids) for ids in map(_array, self._encode(cells[0], end=True))]
        if kind[0] == "prompt":
            prompts = self._encode(cells[0], end=encoder_decoder)
            completions = self._encode(cells[1], special=False, end=True)
            pairs = zip(prompts, completions, strict=True)
            return [_pair(prompt, said, encoder_decoder) for prompt, said in pairs]
        return [self._conversation(messages, encoder_decoder) for messages in cells[0]]

    def _encode(self, texts: Sequence[str], *, special: bool = True, end: bool = False) -> list[list[int]]:
        """`special`: with what the tokenizer puts at a start; `end`: with one end token, else with none."""
        found = self._tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        bare = [ids[:-1] if ids and ids[-1] == self._end else ids for ids in found]
        return [[*ids, self._end] for ids in bare] if end else bare

    def _conversation(self, messages: Sequence[Mapping[str, str]], encoder_decoder: bool) -> Row:
        pieces = list(self._pieces(messages))
        ids = [
            self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text, _ in pieces
        ]
        if encoder_decoder:
            answers = [place for place, (_, learnt) in enumerate(pieces) if learnt]
            last = answers[-1] if answers else len(pieces)
            said = ids[last] if answers else []
            return _pair([*(token for row in ids[:last] for token in row), self._end], said, True)
        labels = [
            token if learnt else UNLABELLED
            for row, (_, learnt) in zip(ids, pieces, strict=True)
            for token in row
        ]
        return Row(_array([token for row in ids for token in row]), _array(labels))

    def _pieces(self, messages: Sequence[Mapping[str, str]]) -> Iterator[Piece]:
        """The conversation as the template writes it, cut where assistants' answers begin and end."""
        done = ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:place], prompt=True)
            after = self._render(messages[: place + 1], prompt=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ConfigError(
                    "the chat template writes earlier messages differently once an answer is there, so that "
                    "answers cannot be told from prompts; give prompt and completion instead"
                )
            yield before[len(done) :], False
            yield after[len(before) :], True
            done = after

    def _render(self, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str:
        if not self._tokenizer.chat_template:
            raise ConfigError(
                "the model has no chat template; give prompt and completion instead of messages"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigError(f"the chat template refuses the messages ({error})") from error
        assert isinstance(text, str)
        return text


def _pair(prompt: list[int], said: list[int], encoder_decoder: bool) -> Row:
    if encoder_decoder:
        return Row(_array(prompt), _array(said))
    return Row(_array([*prompt, *said]), _array([UNLABELLED] * len(prompt) + said))


def _array(ids: Sequence[int]) -> Ids:
    return np.asarray(ids, dtype=np.int32)
