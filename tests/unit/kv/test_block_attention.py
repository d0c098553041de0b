"""Attention by kernels, interpreted on the CPU, against the formula; on an accelerator see tests/gpu."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="there is no Triton for this system")
if torch.cuda.is_available():
    pytest.skip("kernels are compiled here: tests/gpu tests them", allow_module_level=True)

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv import tile_shape, tiles
from pgmoe.kv.attention import Attention
from pgmoe.kv.block_attention import BlockAttention
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pages import Pages
from tests.support.fresh import fresh_seed
from tests.support.interpreted import mend_interpreter
from tests.support.packed_cases import SCALE, ContextCase, PackedCase, seeing

CLOSE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
WIDTHS = ((8, 8), (16, 16), (24, 16), (192, 128), (20, 40))


@pytest.fixture(autouse=True)
def _mended(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_interpreter(monkeypatch)
    monkeypatch.setattr(tiles, "PART_KEYS", 32)  # of short sequences, too, there are several


@pytest.fixture
def seed() -> int:
    return fresh_seed()


class Nobody:
    """An Attention that is not to be asked."""

    def begin(self, packed: PackedTokens) -> None:
        """A pass follows."""

    def end(self) -> None:
        """It is over."""

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        raise AssertionError("kernels can do this")

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        raise AssertionError("kernels can do this")


class Somebody(Nobody):
    """An Attention that is asked, and says so."""

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        return torch.full((1,), 7.0)

    def context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        return torch.full((1,), 8.0)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("window", "chunk"), [(10**6, 10**6), (5, 10**6), (10**6, 12)])
@pytest.mark.parametrize("sinks", [False, True])
def test_packed_tokens_attend_as_the_formula_says(
    seed: int, dtype: torch.dtype, window: int, chunk: int, sinks: bool
) -> None:
    case = PackedCase(seed, dtype, widths=WIDTHS, starts=(0, 7, 90), longest=25)
    sinks_Q = case.random(case.num_query_heads) if sinks else None
    rule = AttentionRule(seeing(window, chunk), SCALE, sinks_Q)
    found = case.pages(BlockAttention(case.pool, Nobody())).attend(0, case.queries, rule)
    assert found.dtype == dtype
    expected = case.plain(lambda q, k: k <= q < k + window and q // chunk == k // chunk, sinks=sinks_Q)
    torch.testing.assert_close(found.double(), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])


def test_a_decoders_tokens_look_at_all_of_their_own_prompt(seed: int) -> None:
    case = ContextCase(seed, torch.float32, longest=100)
    found = case.attend(BlockAttention(case.pool, Nobody()))
    torch.testing.assert_close(found.double(), case.plain(), atol=2e-5, rtol=2e-5)


def test_parts_of_many_lone_tokens_are_merged_a_few_at_a_time(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_shape, "PART_BYTES", 1)
    case = PackedCase(seed, torch.float32, starts=(0, 40, 100), longest=1)
    rule = AttentionRule(seeing(), SCALE)
    found = case.pages(BlockAttention(case.pool, Nobody())).attend(0, case.queries, rule)
    torch.testing.assert_close(found.double(), case.plain(lambda q, k: k <= q), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_gets_the_same_bits_alone_as_in_a_pass_with_others(seed: int, dtype: torch.dtype) -> None:
    case = PackedCase(seed, dtype, starts=(0, 7, 90), longest=40)
    rule = AttentionRule(seeing(window=50), SCALE, case.random(case.num_query_heads))
    pages = case.pages(BlockAttention(case.pool, Nobody()))
    together = pages.attend(0, case.queries, rule)
    assert torch.equal(case.each_alone(pages, rule), together)


def test_a_token_of_a_chunk_gets_the_same_bits_however_the_chunk_is_cut(seed: int) -> None:
    case = PackedCase(seed, torch.float32, starts=(7, 30), longest=40)
    rule = AttentionRule(seeing(window=20), SCALE)
    pages = case.pages(BlockAttention(case.pool, Nobody()))
    together = pages.attend(0, case.queries, rule)
    for row, segment in zip(case.packed.first_rows, case.segments, strict=True):
        if segment.num_tokens >= 4:
            later = replace(segment, start=segment.start + 2, num_tokens=segment.num_tokens - 2)
            rows = slice(row + 2, row + segment.num_tokens)
            pages.begin(PackedTokens([later], case.block, torch.device("cpu")))
            assert torch.equal(pages.attend(0, case.queries[rows], rule), together[rows])


def asked(attention: Attention, case: PackedCase, rule: AttentionRule) -> bool:
    """Whether another does it."""
    pages = Pages(case.pool, attention)
    pages.begin(case.packed)
    return pages.attend(0, case.queries, rule).tolist() == [7.0]


def test_what_kernels_cannot_do_is_left_to_another() -> None:
    case = PackedCase(0, torch.float32)
    attention = BlockAttention(case.pool, Somebody())
    assert not asked(attention, case, AttentionRule(seeing(), SCALE))
    assert asked(attention, case, AttentionRule(seeing(), SCALE, bias=lambda q, k: q))
    assert asked(attention, case, AttentionRule(seeing(), SCALE, expand=lambda k, v: (k, v)))
    every_other = AttentionRule(lambda q, k: (k <= q) & (k % 2 == 0), SCALE)
    assert asked(attention, case, every_other)
    assert asked(attention, case, every_other), "the same when it is asked again"


def test_numbers_of_another_type_are_left_to_another() -> None:
    case, prompts = PackedCase(0, torch.float64), ContextCase(0, torch.float64)
    assert asked(BlockAttention(case.pool, Somebody()), case, AttentionRule(seeing(), SCALE))
    assert prompts.attend(BlockAttention(prompts.pool, Somebody())).tolist() == [8.0]


def test_layers_that_see_alike_are_planned_once_a_pass() -> None:
    case, count = PackedCase(0, torch.float32), 0

    def visible(q: Tensor, k: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return k <= q

    pages = case.pages(BlockAttention(case.pool, GatheredAttention(case.pool)))
    for _ in range(3):
        pages.attend(0, case.queries, AttentionRule(visible, SCALE))
    assert count == 1
    pages.end()
    pages.begin(case.packed)
    pages.attend(0, case.queries, AttentionRule(visible, SCALE))
    assert count == 2
