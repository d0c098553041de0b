"""Attention of packed tokens over the pool: torch's own, called for a few sequences or a chunk at a time.

Shape letters: T tokens of the pass, B sequences, N tokens of each that look, L tokens that each looks at,
H heads of keys and values, G heads of queries for each of these, D width of keys, V of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool, LayerPages
from pgmoe.kv.reads import Read, ReadLimits, ReadPlanner, everything


class GatheredAttention:
    """An Attention for any rule and device: what is looked at is gathered first, unless it lies in a row.

    What to look at is planned once for all layers that see alike.
    """

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._token_bytes = max(shape.token_bytes for shape in pool.shapes)
        self._dtype = pool.shapes[0].dtype
        self._reads: dict[Visible, list[Read]] = {}

    def begin(self, packed: PackedTokens) -> None:
        """See Attention."""
        self._planner = ReadPlanner(packed, self._pool.nothing, self._dtype)
        self._reads.clear()

    def end(self) -> None:
        """See Attention."""
        self._reads.clear()

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """See Attention."""
        if rule.visible not in self._reads:
            num_heads, width = queries_TQD.shape[1:]
            itemsize = self._dtype.itemsize
            kept, alike = rule.expand is None, rule.bias is None and rule.sinks is None
            limits = ReadLimits(
                token_bytes=self._token_bytes if kept else 2 * num_heads * width * itemsize,
                mask_bytes=(1 if alike else num_heads) * itemsize,
            )
            self._reads[rule.visible] = self._planner.own(rule, limits)
        return _attend(queries_TQD, self._pool.layers[layer], self._reads[rule.visible], rule)

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """See Attention."""
        if everything not in self._reads:
            limits = ReadLimits(self._token_bytes, self._dtype.itemsize)
            self._reads[everything] = self._planner.context(limits)
        rule = AttentionRule(everything, scale)
        return _attend(queries_TQD, self._pool.layers[layer], self._reads[everything], rule)


def _attend(queries_TQD: Tensor, pages: LayerPages, reads: Sequence[Read], rule: AttentionRule) -> Tensor:
    """By `rule`, for which the reads are made -> (T, Q, V), Q = H * G query heads."""
    if len(reads) == 1 and isinstance(reads[0].rows, slice):  # all tokens of the pass, in their order
        return _one_call(queries_TQD[reads[0].rows], pages, reads[0], rule)
    out_TQV: Tensor | None = None
    for read in reads:
        got_RQV = _one_call(queries_TQD[read.rows], pages, read, rule)
        if out_TQV is None:
            out_TQV = got_RQV.new_empty(len(queries_TQD), *got_RQV.shape[1:])
        out_TQV[read.rows] = got_RQV
    assert out_TQV is not None
    return out_TQV


def _one_call(q_RQD: Tensor, pages: LayerPages, read: Read, rule: AttentionRule) -> Tensor:
    """(B * N, Q, D) to (B * N, Q, V)."""
    num_sequences, lone = read.num_sequences, len(q_RQD) == read.num_sequences
    k_BHLD, v_BHLV = _taken(pages.keys, read), _taken(pages.values, read)
    if rule.expand is not None:
        k_BHLD, v_BHLV = rule.expand(k_BHLD, v_BHLV)
    num_kv, value_width = k_BHLD.shape[1], v_BHLV.shape[3]
    num_rows, num_heads, width = q_RQD.shape
    if value_width < width:  # torch's fused attention takes equal widths alone; zeros add nothing
        v_BHLV = functional.pad(v_BHLV, (0, width - value_width))
    groups = num_heads // num_kv
    mask = _mask(read, num_kv, groups, rule.sinks)
    if lone:  # the heads of a group look at the same keys: as tokens do
        q = q_RQD.view(num_sequences, num_kv, groups, width)
        k, v = k_BHLD, v_BHLV
    else:
        q = q_RQD.view(num_rows, num_kv, groups, width).permute(1, 2, 0, 3)
        k, v = (x[0][:, None].expand(-1, groups, -1, -1) for x in (k_BHLD, v_BHLV))
    out = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=read.causal, scale=rule.scale)
    out = out[..., :value_width]
    return (out if lone else out.permute(2, 0, 1, 3)).reshape(num_rows, num_heads, value_width)


def _taken(pool_PHD: Tensor, read: Read) -> Tensor:
    """(B, H, L, D): a view where the places follow each other."""
    places = read.places
    taken = pool_PHD[places] if isinstance(places, slice) else pool_PHD.index_select(0, places)
    return taken.view(read.num_sequences, -1, *pool_PHD.shape[1:]).transpose(1, 2)


def _mask(read: Read, num_kv: int, groups: int, sinks_Q: Tensor | None) -> Tensor | None:
    """What is added to the scores, in the form that they have in `_one_call`; it may broadcast over heads."""
    mask_BHNL = read.mask
    if mask_BHNL is None:
        return None
    num_sequences, num_heads, num_tokens, _ = mask_BHNL.shape
    if sinks_Q is not None:
        num_heads = len(sinks_Q)
        sink_1Q11 = sinks_Q.to(mask_BHNL.dtype)[None, :, None, None]
        shape = (num_sequences, num_heads, num_tokens, -1)
        mask_BHNL = torch.cat([mask_BHNL.expand(shape), sink_1Q11.expand(*shape[:3], 1)], dim=3)
    if num_heads == 1:
        return mask_BHNL
    if num_tokens == 1:
        return mask_BHNL.reshape(num_sequences, num_kv, groups, -1)
    return mask_BHNL.reshape(num_kv, groups, num_tokens, -1)
