"""From token ids to text, one token at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NUM_CONTEXT = 8
"""How many prompt tokens are kept: more than a character has bytes, so that one with text is among them."""


class Detokenizer:
    """Turns the tokens of one answer into text that is never taken back.

    All pieces joined are `decode(prompt + answer)` less the prompt's own text (an unfinished character at the
    prompt's end counts to the answer), with `skip_special_tokens=True, clean_up_tokenization_spaces=False`.
    So `▁world` after a prompt is " world", and "world" where there is no prompt.

    Text is held back while it can change: after an unfinished UTF-8 character, and within a run of
    byte-fallback tokens (`<0x0A>`), which decodes to replacement characters as a whole if one byte in it is
    invalid. `tokenizers.decoders.DecodeStream` does not wait for the run's end: it raises "Invalid prefix"
    and stays unusable. It has no flush either, and serves Rust tokenizers alone.

    Without a tokenizer there is no text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the ids of the last piece, then those not yet in a piece
        self._num_given = 0  # how many ids of the window are in a piece
        self._given = ""  # the text of the window that was returned
        self._text = ""  # the whole text of the window
        self._in_bytes = False  # the last token with a text is a byte-fallback token
        for token_id in self._context(prompt_token_ids):
            self.push(token_id)
        self._given = self._text.rstrip(_REPLACEMENT)

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is final now and was not returned yet, often ""."""
        if self._tokenizer is None:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if self._is_byte(token_id):
            self._in_bytes = True
        elif text != self._text:  # a token without text, such as a special one, does not end a run of bytes
            self._in_bytes = False
        self._text = text
        if self._in_bytes or text.endswith(_REPLACEMENT):
            return ""
        return self._give()

    def finish(self) -> str:
        """The answer has ended: return what was held back, unfinished characters as U+FFFD."""
        piece, self._given = self._text[len(self._given) :], self._text
        return piece

    def _give(self) -> str:
        piece = self._text[len(self._given) :]
        if piece:
            # The last piece's ids stay as context: decoders treat the first token of a text differently.
            self._window = self._window[self._num_given :]
            self._num_given = len(self._window)
            self._given = self._text = self._decode(self._window)
        return piece

    def _context(self, ids: Sequence[int]) -> Sequence[int]:
        """The prompt's last tokens, never cut within a run of byte-fallback tokens."""
        start = max(0, len(ids) - _NUM_CONTEXT)
        while self._tokenizer is not None and 0 < start < len(ids) and self._is_byte(ids[start - 1]):
            start -= 1
        return ids[start:]

    def _is_byte(self, token_id: int) -> bool:
        assert self._tokenizer is not None
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return isinstance(token, str) and _BYTE_TOKEN.fullmatch(token) is not None

    def _decode(self, ids: list[int]) -> str:
        assert self._tokenizer is not None
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def token_text(tokenizer: PreTrainedTokenizerBase | None, token_id: int) -> str:
    """The text of one token within a sentence, as log-probabilities report it; special tokens by name.

    Decoded as the second of a pair: as the first, `▁world` would lose its space. Bytes that are no whole
    character give U+FFFD; without a tokenizer, "".
    """
    if tokenizer is None:
        return ""
    one, two = (tokenizer.decode([token_id] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
    assert isinstance(one, str)
    assert isinstance(two, str)
    return two[len(one) :]
