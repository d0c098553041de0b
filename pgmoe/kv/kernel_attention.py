"""Attention on CPUs with AMX that reads blocks where they lie, by a kernel of our own (`cpu/attention.h`).

Shape letters: T tokens of the pass, Q query heads, D width of keys, V of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.cpu.kernels import BLOCK, MOST_WIDTH, SIDE, address, available, kernels
from pgmoe.kv.attention import Attention
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.planned import PlannedAttention
from pgmoe.kv.pool import KvPool, LayerPages, LayerShape
from pgmoe.kv.spans import Spans
from pgmoe.kv.tiles import BlockTable, chunk_tiles, int32


class KernelAttention(PlannedAttention):
    """An Attention for bfloat16; see PlannedAttention.

    What a token gets depends, to the bit, on its own sequence alone: not on what else is in the pass, on how
    its prompt was cut to chunks, or on the threads.
    """

    def __init__(self, pool: KvPool, otherwise: Attention) -> None:
        """`otherwise`: over the same pool, for what is left to it."""
        super().__init__(pool, otherwise, _AmxKernels())


def takes(shape: LayerShape, block_tokens: int) -> bool:
    """Whether the kernel does a layer, where it is on a CPU."""
    return (
        available()
        and shape.dtype is torch.bfloat16
        and max(shape.key_width, shape.value_width) <= MOST_WIDTH
        and not (shape.key_width % BLOCK or shape.value_width % SIDE or block_tokens % SIDE)
    )


def tokens_of_tile(groups: int) -> int:
    """Tokens of a sequence that go over its keys together, with so many query heads for each head of keys."""
    return max(1, SIDE // groups)


class _AmxKernels:
    """See Kernels."""

    def take(self, shape: LayerShape, block_tokens: int) -> bool:
        """See Kernels."""
        return takes(shape, block_tokens)

    def plan(
        self, packed: PackedTokens, spans: Spans, table: BlockTable, shape: LayerShape, groups: int
    ) -> _Plan:
        """See Kernels."""
        tile_tokens = tokens_of_tile(groups)
        rows = zip(packed.first_rows, packed.segments, table.starts, strict=True)
        tiles = [tile for of_segment in rows for tile in chunk_tiles(*of_segment, spans, tile_tokens)]
        return _Plan(shape, groups, packed.block_tokens, spans, table, int32(tiles, packed.device))


class _Plan:
    """See Plan. What all layers have in common is gathered once."""

    def __init__(
        self,
        shape: LayerShape,
        groups: int,
        block_tokens: int,
        spans: Spans,
        table: BlockTable,
        tiles_N5: Tensor,
    ) -> None:
        self._kept = table.blocks, spans.both, tiles_N5
        self._value_width = shape.value_width
        blocks, both, tiles = (tensor.data_ptr() for tensor in self._kept)
        self._tables = blocks, both, tiles, tiles_N5.shape[0]
        widths = shape.key_width, shape.value_width
        self._sizes = shape.num_heads, groups, *widths, block_tokens, torch.get_num_threads()

    def run(self, queries_TQD: Tensor, pages: LayerPages, rule: AttentionRule) -> Tensor:
        """See Plan."""
        if queries_TQD.stride(2) != 1:
            queries_TQD = queries_TQD.contiguous()
        num_tokens, num_heads, _ = queries_TQD.shape
        token_stride, head_stride, _ = queries_TQD.stride()
        sinks_Q = None if rule.sinks is None else rule.sinks.float().contiguous()
        out_TQV = queries_TQD.new_empty(num_tokens, num_heads, self._value_width)
        kernels.attend(
            queries_TQD.data_ptr(),
            token_stride,
            head_stride,
            pages.keys.data_ptr(),
            pages.values.data_ptr(),
            address(sinks_Q),
            out_TQV.data_ptr(),
            *self._tables,
            rule.scale,
            *self._sizes,
        )
        return out_TQV
