"""Attention by our kernel for CPUs, against the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.cpu.kernels import available
from pgmoe.kv.choice import attention_over
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.kernel_attention import KernelAttention
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool, LayerShape
from tests.support.fresh import fresh_seed
from tests.support.packed_cases import SCALE, ContextCase, PackedCase, seeing

CPU = torch.device("cpu")
WIDTHS = ((32, 32), (64, 64), (96, 16), (64, 128), (256, 256))
with_kernels = pytest.mark.skipif(not available(), reason="this machine cannot run the kernels")


def drawn(seed: int, longest: int = 40) -> PackedCase:
    return PackedCase(seed, torch.bfloat16, widths=WIDTHS, starts=(0, 7, 90), longest=longest, block=16)


def by_kernels(case: PackedCase) -> Pages:
    """Nobody is there for what they cannot do."""
    return case.pages(KernelAttention(case.pool, _Nobody(case.pool)))


class _Nobody(GatheredAttention):
    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        raise AssertionError("kernels can do this")

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        raise AssertionError("kernels can do this")


@with_kernels
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize(("window", "chunk"), [(10**6, 10**6), (5, 10**6), (50, 10**6), (10**6, 12)])
@pytest.mark.parametrize("sinks", [False, True])
def test_packed_tokens_attend_as_the_formula_says(attempt: int, window: int, chunk: int, sinks: bool) -> None:
    case = drawn(fresh_seed())
    sinks_Q = case.random(case.num_query_heads) if sinks else None
    found = by_kernels(case).attend(0, case.queries, AttentionRule(seeing(window, chunk), SCALE, sinks_Q))
    assert found.dtype == torch.bfloat16
    expected = case.plain(lambda q, k: k <= q < k + window and q // chunk == k // chunk, sinks=sinks_Q)
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=2e-2)


@with_kernels
def test_many_query_heads_share_a_head_of_keys() -> None:
    case = drawn(fresh_seed())
    case.groups = 24  # more rows of one token than a tile has
    case.queries = case.random(case.packed.num_tokens, case.num_query_heads, case.width)
    found = by_kernels(case).attend(0, case.queries, AttentionRule(seeing(), SCALE))
    expected = case.plain(lambda q, k: k <= q)
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=2e-2)


@with_kernels
def test_a_decoders_tokens_look_at_all_of_their_own_prompt() -> None:
    case = ContextCase(fresh_seed(), torch.bfloat16, longest=100, width=32, block=32)
    found = case.attend(KernelAttention(case.pool, _Nobody(case.pool)))
    torch.testing.assert_close(found.double(), case.plain(), atol=2e-2, rtol=2e-2)


@with_kernels
def test_queries_may_lie_heads_first() -> None:
    case = drawn(fresh_seed())
    pages, rule = by_kernels(case), AttentionRule(seeing(), SCALE)
    expected = pages.attend(0, case.queries, rule)
    heads_first = case.queries.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(pages.attend(0, heads_first, rule), expected)
    apart = case.queries.repeat_interleave(2, dim=2)[:, :, ::2]
    assert torch.equal(pages.attend(0, apart, rule), expected)


@with_kernels
@pytest.mark.parametrize("attempt", range(5))
def test_a_sequence_gets_the_same_bits_alone_as_with_others_and_token_by_token(attempt: int) -> None:
    case = drawn(fresh_seed())
    rule = AttentionRule(seeing(window=50), SCALE, case.random(case.num_query_heads))
    pages = by_kernels(case)
    together = pages.attend(0, case.queries, rule)
    assert torch.equal(case.each_alone(pages, rule), together)
    for row, segment in zip(case.packed.first_rows, case.segments, strict=True):
        for i in range(segment.num_tokens):
            one = replace(segment, start=segment.start + i, num_tokens=1)
            pages.begin(PackedTokens([one], case.block, CPU))
            assert torch.equal(pages.attend(0, case.queries[row + i][None], rule)[0], together[row + i])


@with_kernels
def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = drawn(fresh_seed())
    pages, rule = by_kernels(case), AttentionRule(seeing(), SCALE)
    expected = pages.attend(0, case.queries, rule)
    for num_threads in (1, 2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=num_threads: n)
        assert torch.equal(pages.attend(0, case.queries, rule), expected)


@with_kernels
@pytest.mark.parametrize("size", [1e-30, 1e3, 1e18])
def test_small_and_large_scores(size: float) -> None:
    """Nothing overflows where the formula does not, and one key takes all where its score is far above."""
    case = drawn(fresh_seed())
    case.queries = case.queries * size
    found = by_kernels(case).attend(0, case.queries, AttentionRule(seeing(), SCALE))
    expected = case.plain(lambda q, k: k <= q)
    assert bool(found.isfinite().all())
    close = (found.double() - expected).abs() <= 2e-2 + 2e-2 * expected.abs()
    assert bool(close.all() if size < 1 else close.double().mean() > 0.98)  # ties are rounded either way


@with_kernels
def test_what_is_no_number_is_passed_on_to_who_sees_it() -> None:
    case = drawn(3, longest=1)
    case.keys[0][-1] = torch.nan
    found = by_kernels(case).attend(0, case.queries, AttentionRule(seeing(), SCALE))
    assert bool(found[0].isnan().all())
    assert not bool(found[1:].isnan().any())


@with_kernels
def test_queries_of_another_type_are_not_read_as_bfloat16() -> None:
    case = drawn(fresh_seed())
    pages = case.pages(KernelAttention(case.pool, GatheredAttention(case.pool)))
    with pytest.raises(RuntimeError, match="dtype"):
        pages.attend(0, case.queries.float(), AttentionRule(seeing(), SCALE))


@with_kernels
def test_what_kernels_cannot_do_is_gathered() -> None:
    case = drawn(fresh_seed())
    rules = [
        AttentionRule(lambda q, k: (k <= q) & (k % 2 == 0) | (q == k), SCALE),
        AttentionRule(
            seeing(), SCALE, bias=lambda q, k: (k[:, None] - q[..., None])[:, None].bfloat16() / 64
        ),
    ]
    for rule in rules:
        pages = [case.pages(make(case.pool)) for make in (_with_gathering, GatheredAttention)]
        found, expected = (p.attend(0, case.queries, rule) for p in pages)
        assert torch.equal(found, expected)


def _with_gathering(pool: KvPool) -> KernelAttention:
    return KernelAttention(pool, GatheredAttention(pool))


@pytest.mark.parametrize(
    ("width", "value_width", "block", "dtype", "taken"),
    [
        (32, 16, 16, torch.bfloat16, True),
        (256, 256, 64, torch.bfloat16, True),
        (48, 32, 16, torch.bfloat16, False),
        (32, 24, 16, torch.bfloat16, False),
        (288, 32, 16, torch.bfloat16, False),
        (32, 32, 8, torch.bfloat16, False),
        (32, 32, 16, torch.float32, False),
        (32, 32, 16, torch.float16, False),
    ],
)
def test_which_layers_they_take(
    width: int, value_width: int, block: int, dtype: torch.dtype, taken: bool
) -> None:
    pool = KvPool([LayerShape(2, width, value_width, dtype)], 4, block, CPU)
    assert isinstance(attention_over(pool), KernelAttention) == (taken and available())
