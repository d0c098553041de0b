"""The kernels of `_kernels.c`, where they were built and this CPU can run them."""

from __future__ import annotations

from functools import cache

try:
    from pgmoe.cpu import _kernels as kernels
except ImportError:  # installed without a C compiler, or for another processor
    kernels = None  # type: ignore[assignment]

__all__ = ["MOST_TOKENS", "STEP", "available", "kernels", "padded"]

STEP = 32
"""Widths of all matrices are multiples of it."""
MOST_TOKENS = 64
"""Of one pass. For more, torch's library multiplies faster."""
_SIDE = 16
"""Tokens are packed so many at a time."""


@cache
def available() -> bool:
    """Whether they can be called here."""
    return kernels is not None and kernels.supported()


def padded(num_tokens: int) -> int:
    """Rows of memory that so many tokens are packed into."""
    return -(-num_tokens // _SIDE) * _SIDE
