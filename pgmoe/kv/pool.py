"""The pool of keys and values: for each layer two tensors, cut into blocks of a few tokens.

A token's *place* is its block times the block's length, plus where in the block it is. After the last block
comes one place more, `nothing`, which holds zeros: what fills up shorter sequences, and what a sink looks at.
Shape letters: P places of the pool, T tokens, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token."""

    num_heads: int
    """Of keys and values, which may be fewer than those of queries."""
    key_width: int
    value_width: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values."""
        return self.num_heads * (self.key_width + self.value_width) * self.dtype.itemsize


@dataclass(frozen=True)
class LayerPages:
    """One layer's part of the pool."""

    keys: Tensor
    """(P, H, D)."""
    values: Tensor
    """(P, H, D), with a width of its own."""

    def write(self, places_T: Tensor, keys_THD: Tensor, values_THD: Tensor) -> None:
        """Put tokens in their places."""
        self.keys.index_copy_(0, places_T, keys_THD)
        self.values.index_copy_(0, places_T, values_THD)


class KvPool:
    """All layers' keys and values. What is in it is the block manager's business."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_blocks: int,
        block_tokens: int,
        device: torch.device,
    ) -> None:
        self.shapes = tuple(shapes)
        self.device = device
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.nothing = num_blocks * block_tokens
        self.layers = tuple(self._allocate(shape) for shape in shapes)

    def copy_to(self, other: KvPool, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks to a pool of the same layers, or within this one: (block here, block there)."""
        for source, target in pairs:
            for mine, theirs in zip(self.layers, other.layers, strict=True):
                theirs.keys[other.places(target)].copy_(mine.keys[self.places(source)])
                theirs.values[other.places(target)].copy_(mine.values[self.places(source)])

    def places(self, block: int) -> slice:
        """Those of one block."""
        return slice(block * self.block_tokens, (block + 1) * self.block_tokens)

    def _allocate(self, shape: LayerShape) -> LayerPages:
        def places(width: int) -> Tensor:
            made = torch.empty(
                self.nothing + 1, shape.num_heads, width, dtype=shape.dtype, device=self.device
            )
            made[self.nothing] = 0
            return made

        return LayerPages(keys=places(shape.key_width), values=places(shape.value_width))
