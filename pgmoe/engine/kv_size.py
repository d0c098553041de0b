"""Bytes that the cached keys and values of a sequence take: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KvPart:
    """What some of a model's layers keep of one sequence."""

    token_bytes: int
    """For each token kept; 0 for a state of constant size."""
    fixed_bytes: int = 0
    most_tokens: int | None = None
    """Older tokens than these are dropped (a sliding window, and the newest step beside it)."""

    def num_bytes(self, num_tokens: int) -> int:
        """With so many tokens seen."""
        kept = num_tokens if self.most_tokens is None else min(num_tokens, self.most_tokens)
        return self.fixed_bytes + kept * self.token_bytes


@dataclass(frozen=True)
class KvSize:
    """A sequence's share of memory, by its length."""

    parts: tuple[KvPart, ...]
    """Of the decoder's own tokens: prompt and answer, or an encoder-decoder's answer alone."""
    prompt_token_bytes: int = 0
    """For each prompt token of an encoder-decoder: keys and values to look at, and the encoder's output."""

    @property
    def token_bytes(self) -> int:
        """Bytes that one more token takes, before any window is full."""
        return self.prompt_token_bytes + sum(part.token_bytes for part in self.parts)

    def request_bytes(self, num_prompt: int, num_decoder: int) -> int:
        """Most bytes of a request that ends with so many tokens in the decoder.

        `num_decoder` counts the prompt, too, where the decoder reads it.
        """
        own = sum(part.num_bytes(num_decoder) for part in self.parts)
        return own + num_prompt * self.prompt_token_bytes

    def sequence_bytes(self, num_tokens: int) -> int:
        """Of a sequence of `num_tokens`; an encoder-decoder's prompt and answer are that long each."""
        return self.request_bytes(num_tokens, num_tokens)

    def tokens_in(self, num_bytes: int, limit: int) -> int:
        """The longest sequence, `limit` tokens at most, whose keys and values fit; 0 if none does."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence_bytes(middle) <= num_bytes:
                low = middle
            else:
                high = middle - 1
        return low
