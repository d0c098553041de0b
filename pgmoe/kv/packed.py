"""Tokens of several sequences, side by side in one forward pass.

Shape letters: T tokens of the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Segment:
    """One sequence's tokens in the pass."""

    num_tokens: int
    start: int
    """Position of the first: so many tokens of the sequence are in the pool already."""
    blocks: tuple[int, ...]
    """Its blocks, first tokens first; with room for these tokens."""
    context_blocks: tuple[int, ...] = ()
    """Of an encoder-decoder: blocks of what its prompt left for cross-attention."""
    num_context: int = 0
    """Tokens in these."""
    new_context: bool = False
    """Whether they are written in this pass."""

    @property
    def end(self) -> int:
        """Tokens of the sequence after the pass."""
        return self.start + self.num_tokens


class PackedTokens:
    """The tokens of one pass, segment after segment."""

    def __init__(self, segments: Sequence[Segment], block_tokens: int, device: torch.device) -> None:
        self.segments = tuple(segments)
        self.block_tokens = block_tokens
        self.device = device
        self.first_rows = tuple(accumulate((s.num_tokens for s in segments), initial=0))[:-1]
        """Of each segment's first token."""
        positions = [p for s in segments for p in range(s.start, s.end)]
        places = [self.place(s.blocks, p) for s in segments for p in range(s.start, s.end)]
        context = [
            self.place(s.context_blocks, p) for s in segments if s.new_context for p in range(s.num_context)
        ]
        self.positions_T = torch.tensor(positions, device=device)
        """Of each token in its sequence."""
        self.places_T = torch.tensor(places, device=device)
        """In the pool, where each token's keys and values go."""
        self.context_places = torch.tensor(context, dtype=torch.int64, device=device)
        """Where those of the prompts go, segment after segment, while they are written."""

    @cached_property
    def rows_T(self) -> torch.Tensor:  # noqa: N802
        """The places, as kernels take them: int32."""
        return self.places_T.int()

    @property
    def num_tokens(self) -> int:
        """Of all segments."""
        return len(self.positions_T)

    def place(self, blocks: tuple[int, ...], position: int) -> int:
        """Of a token in the pool."""
        return blocks[position // self.block_tokens] * self.block_tokens + position % self.block_tokens
