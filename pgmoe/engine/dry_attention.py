"""Attention on the meta device: what it makes in memory, and nothing is computed.

Shape letters as in `kv.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.kernel_attention import takes, tokens_of_tile
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool
from pgmoe.kv.reads import everything
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
        self._plans: dict[Visible, tuple[Tensor, ...]] = {}
        self.gathered = False
        """Whether torch's own attention has stood in for kernels."""

    def begin(self, packed: PackedTokens) -> None:
        """See Attention."""
        super().begin(packed)
        self._packed = packed
        self._plans.clear()

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """See Attention."""
        if not self._taken[layer] or rule.bias is not None or rule.expand is not None:
            self.gathered = True
            return super().own(layer, queries_TQD, rule)
        if rule.visible not in self._plans:
            spans_T2 = asked(self._packed, rule.visible)
            lengths = [segment.end for segment in self._packed.segments]
            made = self._tables(layer, queries_TQD, lengths)
            self._plans[rule.visible] = spans_T2, self._packed.rows_T, *made
        return self._made(layer, queries_TQD)

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """See Attention."""
        if not self._taken[layer]:
            self.gathered = True
            return super().context(layer, queries_TQD, scale)
        if everything not in self._plans:
            spans_T2 = queries_TQD.new_empty(len(queries_TQD), 2, dtype=torch.int32)
            lengths = [segment.num_context for segment in self._packed.segments]
            self._plans[everything] = (spans_T2, *self._tables(layer, queries_TQD, lengths))
        return self._made(layer, queries_TQD)

    def _tables(self, layer: int, queries_TQD: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tiles of the pass, and the blocks of what its sequences look at."""
        tile_tokens = tokens_of_tile(queries_TQD.shape[1] // self._pool.shapes[layer].num_heads)
        num_tiles = sum(-(-segment.num_tokens // tile_tokens) for segment in self._packed.segments)
        num_blocks = sum(-(-length // self._pool.block_tokens) for length in lengths)
        tiles_N5 = queries_TQD.new_empty(num_tiles, 5, dtype=torch.int32)
        return tiles_N5, queries_TQD.new_empty(num_blocks, dtype=torch.int32)

    def _made(self, layer: int, queries_TQD: Tensor) -> Tensor:
        return queries_TQD.new_empty(*queries_TQD.shape[:2], self._pool.shapes[layer].value_width)
