"""How one layer's tokens look at others: what a model says to whoever computes its attention.

Shape letters: B sequences, N tokens of each that look, L tokens that each looks at, Q query heads, H heads of
keys and values, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Visible = Callable[[Tensor, Tensor], Tensor]
"""(positions that look, positions looked at), which broadcast, to whether they may: bool."""
Bias = Callable[[Tensor, Tensor], Tensor]
"""(positions that look (B, N), positions looked at (B, L)) to what is added to the scores (B, Q, N, L)."""
Expand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What is kept of tokens, (B, H, L, D) twice with widths of their own, to keys and values, likewise."""


@dataclass(frozen=True)
class AttentionRule:
    """Softmax of scaled scores over what is visible, times values."""

    visible: Visible
    """Layers that see alike in a pass have the same object here, and share the first one's `bias` (T5)."""
    scale: float
    sinks: Tensor | None = None
    """(Q,): a score of each head that takes its part of the softmax and gives nothing (gpt-oss)."""
    bias: Bias | None = None
    expand: Expand | None = None
    """Makes keys and values of what is kept, where that is compressed (latent attention)."""
