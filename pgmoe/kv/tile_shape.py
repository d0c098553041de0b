"""How large the kernels' tiles are: a matter of a layer's heads, widths and type, never of what is in a pass.

So a token's result is the same whatever runs beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SIDES = (64, 32, 16)
"""Of a tile, in queries or keys; products on tensor cores have no smaller ones."""
SIDE_BYTES = 32 * 2**10
"""Of a tile's queries, and of the keys and values of a step, which shared memory holds twice."""
NUM_STAGES = 2
NUM_WARPS = 4
PART_BYTES = 16 * 2**20
"""Of what is known of parts before they are merged; more for a single token with more."""


@dataclass(frozen=True)
class TileShape:
    """For one layer."""

    num_heads: int
    """Of keys and values."""
    groups: int
    """Query heads for each of these."""
    width: int
    """Of a key."""
    value_width: int
    dtype: torch.dtype

    @property
    def padded(self) -> int:
        """Width of a key, a power of two."""
        return _padded(self.width)

    @property
    def value_padded(self) -> int:
        """The same of a value."""
        return _padded(self.value_width)

    @property
    def keys(self) -> int:
        """Of a step."""
        return _fitting((self.padded + self.value_padded) * self.dtype.itemsize)

    @property
    def lone_lanes(self) -> int:
        """Query heads of one token, padded."""
        return _padded(self.groups)

    @property
    def chunk_lanes(self) -> int:
        """Query heads of several, padded."""
        return max(_fitting(self.padded * self.dtype.itemsize), self.lone_lanes)

    @property
    def chunk_tokens(self) -> int:
        """Several, whose heads these are."""
        return self.chunk_lanes // self.groups

    @property
    def most_parts(self) -> int:
        """Computed at once."""
        return PART_BYTES // (self.num_heads * self.groups * (self.value_width + 2) * 4)


def _padded(size: int) -> int:
    """The next power of two that a tile's side can have."""
    return max(SIDES[-1], 1 << (size - 1).bit_length())


def _fitting(row_bytes: int) -> int:
    """So many rows; a few at least."""
    return next((side for side in SIDES if side * row_bytes <= SIDE_BYTES), SIDES[-1])
