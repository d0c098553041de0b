"""Attention on the meta device: what it makes in memory, and nothing is computed.

Shape letters as in `kv.attention`.
"""

from __future__ import annotations

from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.kernel_attention import takes
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool
from pgmoe.kv.spans import asked


class DryAttention(GatheredAttention):
    """An Attention that gathers, or does as a CPU's kernels do.

    Where those take a layer, each of its tokens is taken to see a single run of positions, as in all rules of
    transformers; else it would be gathered after all, within `reads.CALL_BYTES` twice.
    """

    def __init__(self, pool: KvPool, *, on_cpu: bool) -> None:
        """`on_cpu`: whether it stands for one there, where kernels do what they take."""
        super().__init__(pool)
        self._taken = [on_cpu and takes(shape, pool.block_tokens) for shape in pool.shapes]
        self._spans: dict[Visible, Tensor] = {}

    def begin(self, packed: PackedTokens) -> None:
        """See Attention."""
        super().begin(packed)
        self._packed = packed
        self._spans.clear()

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """See Attention."""
        if not self._taken[layer] or rule.bias is not None or rule.expand is not None:
            return super().own(layer, queries_TQD, rule)
        if rule.visible not in self._spans:
            self._spans[rule.visible] = asked(self._packed, rule.visible)
        return self._made(layer, queries_TQD)

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """See Attention."""
        if not self._taken[layer]:
            return super().context(layer, queries_TQD, scale)
        return self._made(layer, queries_TQD)

    def _made(self, layer: int, queries_TQD: Tensor) -> Tensor:
        return queries_TQD.new_empty(*queries_TQD.shape[:2], self._pool.shapes[layer].value_width)
