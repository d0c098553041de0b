"""Attention that reads blocks where they lie: what is launched for a pass.

Shape letters as in `block_kernel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.attention import Attention
from pgmoe.kv.block_kernel import attend_tile, merge_parts
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool, LayerPages
from pgmoe.kv.reads import everything
from pgmoe.kv.spans import Spans
from pgmoe.kv.tile_shape import NUM_STAGES, NUM_WARPS, TileShape
from pgmoe.kv.tiles import BlockTable, Tiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BlockAttention:
    """An Attention by kernels, where they can do it: numbers of DTYPES, and rules by which each token sees a
    single run of positions, with sinks or without. The rest is left to another: scores with a bias (T5), and
    what is compressed and has to be expanded (latent attention).

    What a token gets does not depend, to the bit, on what else is in the pass; only on whether its sequence
    has one token in it or several. Plans are made once a pass for all layers that see alike.
    """

    def __init__(self, pool: KvPool, otherwise: Attention) -> None:
        """`otherwise`: over the same pool, for what is left to it."""
        self._pool = pool
        self._otherwise = otherwise
        self._plans: dict[tuple[Visible | None, TileShape], _Plan | None] = {}
        self._tables: dict[bool, BlockTable] = {}
        """Of prompts: True; of the sequences themselves: False."""

    def begin(self, packed: PackedTokens) -> None:
        """See Attention."""
        self._packed = packed
        self._otherwise.begin(packed)
        self._forget()

    def end(self) -> None:
        """See Attention."""
        self._otherwise.end()
        self._forget()

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """See Attention."""
        kept_as_used = rule.bias is None and rule.expand is None
        plan = self._plan(layer, queries_TQD, rule.visible) if kept_as_used else None
        if plan is None:
            return self._otherwise.own(layer, queries_TQD, rule)
        return plan.run(queries_TQD, self._pool.layers[layer], rule)

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """See Attention."""
        plan = self._plan(layer, queries_TQD, None)
        if plan is None:
            return self._otherwise.context(layer, queries_TQD, scale)
        return plan.run(queries_TQD, self._pool.layers[layer], AttentionRule(everything, scale))

    def _plan(self, layer: int, queries_TQD: Tensor, visible: Visible | None) -> _Plan | None:
        """For a layer that sees so, or the prompt for None; None where kernels cannot do it."""
        kept = self._pool.shapes[layer]
        if kept.dtype not in DTYPES:
            return None
        groups = queries_TQD.shape[1] // kept.num_heads
        shape = TileShape(kept.num_heads, groups, kept.key_width, kept.value_width, kept.dtype)
        if (visible, shape) not in self._plans:
            packed = self._packed
            spans = Spans.context(packed) if visible is None else Spans.own(packed, visible)
            table = self._table(of_prompts=visible is None)
            self._plans[visible, shape] = None if spans is None else _Plan.of(packed, spans, table, shape)
        return self._plans[visible, shape]

    def _table(self, *, of_prompts: bool) -> BlockTable:
        if of_prompts not in self._tables:
            tables = [s.context_blocks if of_prompts else s.blocks for s in self._packed.segments]
            self._tables[of_prompts] = BlockTable.of(tables, self._packed.device)
        return self._tables[of_prompts]

    def _forget(self) -> None:
        self._plans.clear()
        self._tables.clear()


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
