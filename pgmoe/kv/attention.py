"""The seam between pages and what computes attention over them.

Shape letters: T tokens of the pass, Q query heads, D width of keys, V of values.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.packed import PackedTokens


class Attention(Protocol):
    """Attention over one pool. Nothing is written to it here."""

    def begin(self, packed: PackedTokens) -> None:
        """A pass of these tokens follows."""
        ...

    def end(self) -> None:
        """The pass is over: nothing that was planned for it is used again."""
        ...

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """Each token over its own sequence, up to the pass's own tokens -> (T, Q, V)."""
        ...

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """Each token over all of the prompt of its sequence -> (T, Q, V)."""
        ...
