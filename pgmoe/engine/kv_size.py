"""Bytes and blocks that the cached keys and values of a sequence take: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.engine.block_manager import BLOCK_TOKENS

_FIXED_BLOCKS = 64
"""Blocks that a state of constant size is at most counted as, where tokens take nothing."""


@dataclass(frozen=True)
class KvSize:
    """A sequence's share of memory, by its length, in blocks."""

    token_bytes: int
    """Of a token's keys and values in all layers of the decoder."""
    fixed_bytes: int = 0
    """Of states of constant size, for each sequence."""
    keeps_prompt: bool = False
    """Whether prompt tokens are kept beside the decoder's own: an encoder-decoder's, for cross-attention."""
    block_tokens: int = BLOCK_TOKENS

    @property
    def block_bytes(self) -> int:
        """Of one block, in all layers."""
        return max(self.block_tokens * self.token_bytes, -(-self.fixed_bytes // _FIXED_BLOCKS))

    @property
    def fixed_blocks(self) -> int:
        """What stands for the states of one sequence."""
        return -(-self.fixed_bytes // self.block_bytes)

    def blocks(self, num_tokens: int) -> int:
        """For so many tokens."""
        return -(-num_tokens // self.block_tokens)

    def request_blocks(self, num_prompt: int, num_decoder: int) -> int:
        """Of a request that ends with so many tokens in the decoder.

        `num_decoder` counts the prompt, too, where the decoder reads it.
        """
        context = self.blocks(num_prompt) if self.keeps_prompt else 0
        return context + self.fixed_blocks + self.blocks(num_decoder)

    def sequence_bytes(self, num_tokens: int) -> int:
        """Of a sequence of `num_tokens`; an encoder-decoder's prompt and answer are that long each."""
        return self.request_blocks(num_tokens, num_tokens) * self.block_bytes

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
