"""A trial of attention by kernels: on some numbers, beside gathering.

Shape letters: T tokens of the pass, Q query heads, D width of a key.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.attention import Attention
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pool import KvPool

GROUPS = 2
NUM_BLOCKS = 4
"""Of each of two sequences: one has a single new token, the other several."""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""What they may differ by; numbers that have nothing to do with each other differ by about 1."""


@torch.inference_mode()
def try_out(make: Callable[[KvPool, Attention], Attention], like: KvPool) -> None:
    """Each kind of layer of a pool, by what is made over another like it.

    Raises ArithmeticError where the results differ, and whatever the trial does.
    """
    shapes = tuple(dict.fromkeys(like.shapes))
    pool = KvPool(shapes, 2 * NUM_BLOCKS, like.block_tokens, like.device)
    draw = torch.Generator(like.device).manual_seed(0)
    for layer in pool.layers:
        layer.keys.normal_(generator=draw)
        layer.values.normal_(generator=draw)
    packed = PackedTokens(_segments(pool), pool.block_tokens, pool.device)
    gathered = GatheredAttention(pool)
    tried = make(pool, gathered)
    tried.begin(packed)
    for number, shape in enumerate(shapes):
        size = (packed.num_tokens, shape.num_heads * GROUPS, shape.key_width)
        queries_TQD = torch.empty(size, dtype=shape.dtype, device=pool.device).normal_(generator=draw)
        rule = AttentionRule(_causal, shape.key_width**-0.5)
        found, expected = (a.own(number, queries_TQD, rule).float() for a in (tried, gathered))
        difference = float((found - expected).abs().max())
        if not difference <= CLOSE.get(shape.dtype, 0):  # NaN is not
            raise ArithmeticError(f"results for {shape} differ by {difference}")


def _segments(pool: KvPool) -> tuple[Segment, Segment]:
    num_tokens = NUM_BLOCKS * pool.block_tokens - 1
    later, earlier = (tuple(range(first, 2 * NUM_BLOCKS, 2)) for first in (1, 0))
    return Segment(1, num_tokens - 1, later), Segment(num_tokens // 2, num_tokens - num_tokens // 2, earlier)


def _causal(queries: Tensor, keys: Tensor) -> Tensor:
    return keys <= queries
