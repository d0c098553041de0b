"""Attention by kernels that read blocks where they lie: what is left to another, and plans kept for a pass.

Shape letters: T tokens of the pass, Q query heads, D width of keys, V of values.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.attention import Attention
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool, LayerPages, LayerShape
from pgmoe.kv.reads import everything
from pgmoe.kv.spans import Spans
from pgmoe.kv.tiles import BlockTable


class Plan(Protocol):
    """What is launched for one pass and all layers of a shape that see alike."""

    def run(self, queries_TQD: Tensor, pages: LayerPages, rule: AttentionRule) -> Tensor:
        """(T, Q, V)."""
        ...


class Kernels(Protocol):
    """Kernels for rules by which each token sees a single run of positions, with sinks or without."""

    def take(self, shape: LayerShape, block_tokens: int) -> bool:
        """Whether they can do a layer."""
        ...

    def plan(
        self, packed: PackedTokens, spans: Spans, table: BlockTable, shape: LayerShape, groups: int
    ) -> Plan:
        """For a pass, and a layer that they take, with so many query heads for each head of keys."""
        ...


class PlannedAttention:
    """An Attention by kernels, where they can do it. The rest is left to another: scores with a bias (T5),
    and what is compressed and has to be expanded (latent attention).

    Plans are made once a pass for all layers that see alike.
    """

    def __init__(self, pool: KvPool, otherwise: Attention, kernels: Kernels) -> None:
        """`otherwise`: over the same pool, for what is left to it."""
        self._pool = pool
        self._otherwise = otherwise
        self._kernels = kernels
        self._plans: dict[tuple[Visible | None, LayerShape, int], Plan | None] = {}
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

    def _plan(self, layer: int, queries_TQD: Tensor, visible: Visible | None) -> Plan | None:
        """For a layer that sees so, or the prompt for None; None where kernels cannot do it."""
        shape = self._pool.shapes[layer]
        if (queries_TQD.dtype, queries_TQD.shape[2]) != (shape.dtype, shape.key_width):
            return None
        groups = queries_TQD.shape[1] // shape.num_heads
        key = visible, shape, groups
        if key not in self._plans:
            self._plans[key] = self._made(visible, shape, groups)
        return self._plans[key]

    def _made(self, visible: Visible | None, shape: LayerShape, groups: int) -> Plan | None:
        packed = self._packed
        if not self._kernels.take(shape, packed.block_tokens):
            return None
        spans = Spans.context(packed) if visible is None else Spans.own(packed, visible)
        if spans is None:
            return None
        return self._kernels.plan(packed, spans, self._table(of_prompts=visible is None), shape, groups)

    def _table(self, *, of_prompts: bool) -> BlockTable:
        if of_prompts not in self._tables:
            tables = [s.context_blocks if of_prompts else s.blocks for s in self._packed.segments]
            self._tables[of_prompts] = BlockTable.of(tables, self._packed.device)
        return self._tables[of_prompts]

    def _forget(self) -> None:
        self._plans.clear()
        self._tables.clear()
