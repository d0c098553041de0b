"""Attention that reads blocks where they lie: what is launched for a pass.

Shape letters as in `block_kernel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.attention import Attention
from pgmoe.kv.block_kernel import attend_tile, merge_parts
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.planned import PlannedAttention
from pgmoe.kv.pool import KvPool, LayerPages, LayerShape
from pgmoe.kv.spans import Spans
from pgmoe.kv.tile_shape import NUM_STAGES, NUM_WARPS, TileShape
from pgmoe.kv.tiles import BlockTable, Tiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BlockAttention(PlannedAttention):
    """An Attention by kernels in Triton, for numbers of DTYPES; see PlannedAttention.

    What a token gets does not depend, to the bit, on what else is in the pass; only on whether its sequence
    has one token in it or several.
    """

    def __init__(self, pool: KvPool, otherwise: Attention) -> None:
        """`otherwise`: over the same pool, for what is left to it."""
        super().__init__(pool, otherwise, _TritonKernels())


class _TritonKernels:
    """See Kernels."""

    def take(self, shape: LayerShape, block_tokens: int) -> bool:
        """See Kernels."""
        return shape.dtype in DTYPES

    def plan(
        self, packed: PackedTokens, spans: Spans, table: BlockTable, shape: LayerShape, groups: int
    ) -> _Plan:
        """See Kernels."""
        tile_shape = TileShape(shape.num_heads, groups, shape.key_width, shape.value_width, shape.dtype)
        return _Plan.of(packed, spans, table, tile_shape)


@dataclass(frozen=True)
class _Plan:
    """Launches for one pass and all layers of a shape that see alike."""

    shape: TileShape
    block_tokens: int
    spans: Spans
    table: BlockTable
    tiles: Tiles

    @classmethod
    def of(cls, packed: PackedTokens, spans: Spans, table: BlockTable, shape: TileShape) -> _Plan:
        tiles = Tiles.of(packed, spans, table, shape.chunk_tokens, shape.most_parts)
        return cls(shape, packed.block_tokens, spans, table, tiles)

    def run(self, queries_TQD: Tensor, pages: LayerPages, rule: AttentionRule) -> Tensor:
        """(T, Q, V)."""
        shape, queries_TQD = self.shape, queries_TQD.contiguous()
        num_heads = queries_TQD.shape[1]
        out_TQV = queries_TQD.new_empty(len(queries_TQD), num_heads, shape.value_width)
        with torch.cuda.device_of(queries_TQD):  # type: ignore[no-untyped-call] # the one of launches
            if (tiles := self.tiles.chunks) is not None:
                self._attend(queries_TQD, pages, rule, tiles, out_TQV)
            for parts in self.tiles.parts:
                parts_SQX = torch.empty(
                    len(parts.tiles), num_heads, shape.value_width + 2, device=queries_TQD.device
                )
                self._attend(queries_TQD, pages, rule, parts.tiles, parts_SQX)
                merge_parts[(len(parts.merges), num_heads)](
                    parts_SQX,
                    out_TQV if rule.sinks is None else rule.sinks,
                    parts.merges,
                    out_TQV,
                    VALUE_WIDTH=shape.value_width,
                    VALUE_PADDED=shape.value_padded,
                    SINKS=rule.sinks is not None,
                )
        return out_TQV

    def _attend(
        self, queries_TQD: Tensor, pages: LayerPages, rule: AttentionRule, tiles: Tensor, out: Tensor
    ) -> None:
        """Tiles of chunks to (T, Q, V), or parts to (S, Q, X)."""
        shape, parts = self.shape, tiles is not self.tiles.chunks
        attend_tile[(len(tiles), shape.num_heads)](
            queries_TQD,
            pages.keys,
            pages.values,
            queries_TQD if rule.sinks is None else rule.sinks,  # it has to be given something
            self.table.blocks,
            tiles,
            self.spans.both,
            out,
            rule.scale * math.log2(math.e),
            BLOCK=self.block_tokens,
            GROUPS=shape.groups,
            WIDTH=shape.width,
            VALUE_WIDTH=shape.value_width,
            PADDED=shape.padded,
            VALUE_PADDED=shape.value_padded,
            LANES=shape.lone_lanes if parts else shape.chunk_lanes,
            KEYS=shape.keys,
            SINKS=rule.sinks is not None,
            PARTS=parts,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
