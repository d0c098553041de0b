"""Attention over the pool against the formula, token by token, on random layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Bias
from pgmoe.kv import reads
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pool import KvPool, LayerShape
from tests.support.packed_cases import SCALE, ContextCase, PackedCase

CPU = torch.device("cpu")
BLOCK = 4


def causal(queries: Tensor, keys: Tensor) -> Tensor:
    return keys <= queries


def by_distance(table: Tensor) -> Bias:
    """What is added to scores, (heads, distance)."""

    def bias(queries: Tensor, keys: Tensor) -> Tensor:
        return table[:, (queries[:, :, None] - keys[:, None]).clamp(0, 63)].transpose(0, 1)

    return bias


@pytest.mark.parametrize("call_bytes", [1000, 20_000, 2**24])
@pytest.mark.parametrize("window", [None, 3, 7])
@pytest.mark.parametrize("extra", ["nothing", "sinks", "bias"])
def test_packed_tokens_attend_as_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, call_bytes: int, window: int | None, extra: str
) -> None:
    monkeypatch.setattr(reads, "CALL_BYTES", call_bytes)
    for seed in range(12):
        case = PackedCase(seed * 9 + call_bytes + (window or 0))
        num_heads = case.num_query_heads
        sinks = case.random(num_heads) if extra == "sinks" else None
        table = case.random(num_heads, 64) if extra == "bias" else None
        bias = None if table is None else by_distance(table)

        def visible(q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (k > q - (window or 10**6))

        pages = case.pages(GatheredAttention(case.pool))
        found = pages.attend(0, case.queries, AttentionRule(visible, SCALE, sinks, bias))
        expected = case.plain(lambda q, k: k <= q < k + (window or 10**6), table, sinks)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_compressed_tokens_are_expanded_before_they_are_looked_at() -> None:
    for seed in range(12):
        case = PackedCase(seed)
        up = case.random(case.num_query_heads, case.heads * case.width, case.width)

        def expand(
            k: Tensor, v: Tensor, up: Tensor = up, width: int = case.value_width
        ) -> tuple[Tensor, Tensor]:
            wide = torch.einsum("blc,hcd->bhld", k.transpose(1, 2).flatten(2), up)
            return wide, wide[..., :width]

        pages = case.pages(GatheredAttention(case.pool))
        found = pages.attend(0, case.queries, AttentionRule(causal, SCALE, expand=expand))
        expanded = [expand(k[None].transpose(1, 2), k[None].transpose(1, 2)) for k in case.keys]
        case.keys = [k[0].transpose(0, 1) for k, _ in expanded]
        case.values = [v[0].transpose(0, 1) for _, v in expanded]
        case.groups = 1
        torch.testing.assert_close(found, case.plain(lambda q, k: k <= q), atol=1e-9, rtol=0)


def test_a_decoders_tokens_look_at_all_of_their_own_prompt() -> None:
    for seed in range(12):
        case = ContextCase(seed)
        found = case.attend(GatheredAttention(case.pool))
        torch.testing.assert_close(found, case.plain(), atol=1e-9, rtol=0)


def test_blocks_that_follow_each_other_are_read_where_they_lie() -> None:
    pool = KvPool([LayerShape(1, 8, 8, torch.float32)], 8, BLOCK, CPU)
    for blocks, kind in (((2, 3, 4), slice), ((2, 4, 3), Tensor)):
        packed = PackedTokens([Segment(1, 9, blocks)], BLOCK, CPU)
        planner = reads.ReadPlanner(packed, pool.nothing, torch.float32)
        (read,) = planner.own(AttentionRule(causal, SCALE), reads.ReadLimits(64, 4))
        assert isinstance(read.places, kind)
        assert (read.num_keys, read.mask) == (10, None)


def test_blocks_are_copied_within_a_pool_and_to_another() -> None:
    shape = LayerShape(2, 8, 4, torch.float32)
    pool, host = KvPool([shape] * 2, 4, BLOCK, CPU), KvPool([shape] * 2, 2, BLOCK, CPU)
    for layer in pool.layers:
        layer.keys.normal_()
        layer.values.normal_()
    pool.copy_to(pool, [(1, 3)])
    pool.copy_to(host, [(1, 0), (2, 1)])
    for mine, theirs in zip(pool.layers, host.layers, strict=True):
        for ours, others in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            assert torch.equal(ours[pool.places(1)], ours[pool.places(3)])
            assert torch.equal(ours[pool.places(1)], others[host.places(0)])
            assert torch.equal(ours[pool.places(2)], others[host.places(1)])
