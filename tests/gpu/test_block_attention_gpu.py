"""The attention kernels on an accelerator: against the formula, and how fast they are beside gathering."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.attention import Attention
from pgmoe.kv.choice import attention_over
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pool import KvPool, LayerShape
from tests.support.fresh import fresh_seed
from tests.support.packed_cases import SCALE, ContextCase, PackedCase, seeing

pytestmark = pytest.mark.gpu

CLOSE = {torch.float32: 5e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
WIDTHS = ((64, 64), (128, 128), (192, 128), (24, 16), (80, 80), (256, 256))


def case_of(dtype: torch.dtype, longest: int = 200) -> PackedCase:
    starts = (0, 100, 700, 1500)
    return PackedCase(fresh_seed(), dtype, "cuda", WIDTHS, starts, longest=longest, block=16)


def by_kernels(pool: KvPool) -> Attention:
    """Which have to work here. That they are compiled and not interpreted is the tests' set-up."""
    from pgmoe.kv.block_attention import BlockAttention

    attention = attention_over(pool)
    assert isinstance(attention, BlockAttention), "see the warning for why kernels do not work"
    return attention


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("window", "chunk"), [(10**6, 10**6), (100, 10**6), (10**6, 300)])
@pytest.mark.parametrize("sinks", [False, True])
def test_attention_kernels_do_as_the_formula_says(
    dtype: torch.dtype, window: int, chunk: int, sinks: bool
) -> None:
    case = case_of(dtype)
    sinks_Q = case.random(case.num_query_heads) if sinks else None
    rule = AttentionRule(seeing(window, chunk), SCALE, sinks_Q)
    found = case.pages(by_kernels(case.pool)).attend(0, case.queries, rule)
    expected = case.plain(lambda q, k: k <= q < k + window and q // chunk == k // chunk, sinks=sinks_Q)
    torch.testing.assert_close(found.cpu().double(), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
def test_attention_kernels_look_at_prompts(dtype: torch.dtype) -> None:
    case = ContextCase(fresh_seed(), dtype, "cuda", longest=100)
    found = case.attend(by_kernels(case.pool))
    torch.testing.assert_close(found.cpu().double(), case.plain(), atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
def test_attention_kernels_give_a_sequence_the_same_bits_alone(dtype: torch.dtype) -> None:
    case = case_of(dtype)
    rule = AttentionRule(seeing(window=900), SCALE, case.random(case.num_query_heads))
    pages = case.pages(by_kernels(case.pool))
    together = pages.attend(0, case.queries, rule)
    assert torch.equal(case.each_alone(pages, rule), together)


def seconds_of(attention: Attention, packed: PackedTokens, queries: Tensor) -> float:
    """Of one layer's attention once the pass is planned; the shortest of several."""

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        attention.own(0, queries, rule)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    rule = AttentionRule(seeing(), queries.shape[2] ** -0.5)
    attention.begin(packed)
    return min(once() for _ in range(10))


@pytest.mark.parametrize(
    ("num_sequences", "num_tokens", "end"),
    [(1, 1, 8192), (1, 1, 32768), (64, 1, 8192), (1, 2048, 2048), (1, 2048, 16384)],
)
def test_attention_kernels_are_faster_than_gathering(num_sequences: int, num_tokens: int, end: int) -> None:
    device, block = torch.device("cuda"), 16
    num_blocks = num_sequences * end // block
    pool = KvPool([LayerShape(8, 128, 128, torch.bfloat16)], num_blocks, block, device)
    pool.layers[0].keys.normal_()
    pool.layers[0].values.normal_()
    scattered = torch.randperm(num_blocks).view(num_sequences, -1).tolist()
    segments = [Segment(num_tokens, end - num_tokens, tuple(blocks)) for blocks in scattered]
    packed = PackedTokens(segments, block, device)
    queries = torch.randn(packed.num_tokens, 32, 128, dtype=torch.bfloat16, device=device)
    makers: dict[str, Callable[[KvPool], Attention]] = {"kernels": by_kernels, "gathered": GatheredAttention}
    seconds = {name: seconds_of(make(pool), packed, queries) for name, make in makers.items()}
    read_bytes = num_sequences * end * pool.shapes[0].token_bytes
    print(f"{num_sequences} x {num_tokens} tokens, to {end}: ", end="")
    print(*(f"{name} {s * 1e6:.0f} us, {read_bytes / s / 1e9:.0f} GB/s;" for name, s in seconds.items()))
    assert seconds["kernels"] < seconds["gathered"]
