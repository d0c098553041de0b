"""The kernels of `_kernels.c`, where they were built and this CPU can run them."""

from __future__ import annotations

from functools import cache

from torch import (
    Tensor,
)  # torch's OpenMP library is to be there first, so that the kernels' threads are its own

try:
    from pgmoe.cpu import _kernels as kernels
except ImportError as error:
    kernels = None  # type: ignore[assignment]
    _missing = f"not built when pgmoe was installed, which takes a C compiler ({error})"

__all__ = [
    "BLOCK", "MOST_CHOICES", "MOST_EXPERTS", "MOST_WIDTH", "SIDE", "SLAB", "address", "available", "kernels",
    "padded", "reason",
]  # fmt: skip

BLOCK = 32 if kernels is None else kernels.BLOCK
"""What a token has of inputs is a multiple of it."""
MOST_CHOICES = 64 if kernels is None else kernels.MOST_CHOICES
"""Experts of one token."""
MOST_EXPERTS = 1024 if kernels is None else kernels.MOST_EXPERTS
"""Of a layer, for its router."""
MOST_WIDTH = 256 if kernels is None else kernels.MOST_WIDTH
"""Of a head, in attention."""
SIDE = 16 if kernels is None else kernels.SIDE
"""Tokens are packed so many at a time."""
SLAB = 256 if kernels is None else kernels.SLAB
"""Tokens that a dense product packs at a time."""
_VERSION = 4
"""As in `_kernels.c`."""


@cache
def reason() -> str | None:
    """Why they cannot be called here; None where they can."""
    if kernels is None:
        return _missing
    if kernels.VERSION != _VERSION:
        return "built from another version's source; install pgmoe again"
    return None if kernels.supported() else "this CPU has no AMX for bfloat16"


def available() -> bool:
    """Whether they can be called here."""
    return reason() is None


def address(tensor: Tensor | None) -> int:
    """As kernels take it; 0 for nothing."""
    return 0 if tensor is None else tensor.data_ptr()


def padded(num_tokens: int) -> int:
    """Rows of memory that so many tokens are packed into."""
    return -(-num_tokens // SIDE) * SIDE
