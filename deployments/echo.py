"""A prompt that is repeated before its answers, with what the model thought of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from pgmoe.engine.detokenizer import Detokenizer, token_text
from pgmoe.request import TokenLogprob


class Echo:
    """The text of one prompt, and where in it its tokens begin.

    Nothing is computed before it is asked for: by then the engine has found the prompt to be in order.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, prompt: str | Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt

    @cached_property
    def text(self) -> str:
        """The prompt as it was sent, or its token ids' text; an unfinished character counts to the answer."""
        if isinstance(self._prompt, str):
            return self._prompt
        return self._read[0].rstrip("\ufffd")

    @property
    def offsets(self) -> list[int]:
        """Where in `text` each token begins; special tokens take no room there."""
        return [min(offset, len(self.text)) for offset in self._read[1]]

    def tokens(self, entries: Sequence[TokenLogprob | None]) -> list[str]:
        """The texts of the tokens that `entries`, one for each token of the prompt, are about."""
        first = token_text(self._tokenizer, self._token_ids[0])  # of which there is no entry
        return [first, *(entry.text for entry in entries if entry is not None)]

    @cached_property
    def _token_ids(self) -> Sequence[int]:
        if not isinstance(self._prompt, str):
            return self._prompt
        assert self._tokenizer is not None, "an engine without one refuses text"
        ids: list[int] = self._tokenizer.encode(self._prompt)
        return ids

    @cached_property
    def _read(self) -> tuple[str, list[int]]:
        """The text that the tokens are decoded to, and where in it each begins."""
        detokenizer = Detokenizer(self._tokenizer)
        text, offsets = "", []
        for token_id in self._token_ids:
            offsets.append(len(text))
            text += detokenizer.push(token_id)
        return text + detokenizer.finish(), offsets
