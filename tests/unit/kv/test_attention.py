"""Attention over the pool against the formula, token by token, on random layouts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Bias
from pgmoe.kv import reads
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool, LayerShape

CPU = torch.device("cpu")
NUM_BLOCKS, BLOCK = 200, 4
SCALE = 0.3


@dataclass
class Case:
    """Sequences in scattered or consecutive blocks, some with one new token, some with a chunk."""

    seed: int
    draw: random.Random = field(init=False)
    segments: list[Segment] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        torch.manual_seed(self.seed)
        self.heads, self.groups = self.draw.choice([1, 2, 3]), self.draw.choice([1, 2, 4])
        self.width, self.value_width = self.draw.choice([(8, 8), (16, 16), (16, 4)])
        shape = LayerShape(self.heads, self.width, self.value_width, torch.float64)
        self.pool = KvPool([shape], NUM_BLOCKS, BLOCK, CPU)
        pages = self.pool.layers[0]
        pages.keys[:-1] = pages.values[:-1] = float("nan")  # what nobody wrote must not count
        free = list(range(NUM_BLOCKS))
        if self.draw.random() < 0.5:
            self.draw.shuffle(free)
        for _ in range(self.draw.randint(1, 6)):
            num_new, start = (
                self.draw.choice([1, 1, 1, self.draw.randint(1, 20)]),
                self.draw.choice([0, 7, 30]),
            )
            blocks = tuple(free.pop(0) for _ in range(-(-(start + num_new) // BLOCK)))
            self.segments.append(Segment(num_new, start, blocks))
            self.keys.append(self.random(start + num_new, self.heads, self.width))
            self.values.append(self.random(start + num_new, self.heads, self.value_width))
        self.packed = PackedTokens(self.segments, BLOCK, CPU)
        self.queries = self.random(len(self.packed.positions_T), self.heads * self.groups, self.width)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    def pages(self) -> Pages:
        """Everything written, the earlier tokens before the pass."""
        for segment, k, v in zip(self.segments, self.keys, self.values, strict=True):
            places = [self.packed.place(segment.blocks, p) for p in range(segment.start)]
            self.pool.layers[0].write(
                torch.tensor(places, dtype=torch.int64), k[: segment.start], v[: segment.start]
            )
        pages = Pages(self.pool, GatheredAttention(self.pool))
        pages.begin(self.packed)
        new = [
            torch.cat([x[s.start :] for s, x in zip(self.segments, of, strict=True)])
            for of in (self.keys, self.values)
        ]
        pages.write(0, *new)
        return pages

    def plain(self, allowed: Callable[[int, int], bool], bias: Tensor | None, sinks: Tensor | None) -> Tensor:
        """Each token by the formula; `bias` (heads, distance) is added to scores."""
        rows, out = iter(self.queries), []
        for segment, k, v in zip(self.segments, self.keys, self.values, strict=True):
            for place in range(segment.start, segment.end):
                scores = torch.einsum("hd,lhd->hl", next(rows), k.repeat_interleave(self.groups, 1)) * SCALE
                for other in range(segment.end):
                    if not allowed(place, other):
                        scores[:, other] = -torch.inf
                    elif bias is not None:
                        scores[:, other] += bias[:, place - other]
                if sinks is not None:
                    scores = torch.cat([scores, sinks[:, None]], dim=1)
                weights = scores.softmax(1)[:, : segment.end]
                out.append(torch.einsum("hl,lhv->hv", weights, v.repeat_interleave(self.groups, 1)))
        return torch.stack(out)


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
        case = Case(seed * 9 + call_bytes + (window or 0))
        num_heads = case.heads * case.groups
        sinks = case.random(num_heads) if extra == "sinks" else None
        table = case.random(num_heads, 64) if extra == "bias" else None
        bias = None if table is None else by_distance(table)

        def visible(q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (k > q - (window or 10**6))

        found = case.pages().attend(0, case.queries, AttentionRule(visible, SCALE, sinks, bias))
        expected = case.plain(lambda q, k: k <= q < k + (window or 10**6), table, sinks)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_compressed_tokens_are_expanded_before_they_are_looked_at() -> None:
    for seed in range(12):
        case = Case(seed)
        up = case.random(case.heads * case.groups, case.heads * case.width, case.width)

        def expand(
            k: Tensor, v: Tensor, up: Tensor = up, width: int = case.value_width
        ) -> tuple[Tensor, Tensor]:
            wide = torch.einsum("blc,hcd->bhld", k.transpose(1, 2).flatten(2), up)
            return wide, wide[..., :width]

        pages = case.pages()
        found = pages.attend(0, case.queries, AttentionRule(causal, SCALE, expand=expand))
        expanded = [expand(k[None].transpose(1, 2), k[None].transpose(1, 2)) for k in case.keys]
        case.keys = [k[0].transpose(0, 1) for k, _ in expanded]
        case.values = [v[0].transpose(0, 1) for _, v in expanded]
        case.groups = 1
        torch.testing.assert_close(found, case.plain(lambda q, k: k <= q, None, None), atol=1e-9, rtol=0)


def test_a_decoders_tokens_look_at_all_of_their_own_prompt() -> None:
    for seed in range(12):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        pool = KvPool([LayerShape(2, 8, 8, torch.float64)], NUM_BLOCKS, BLOCK, CPU)
        free = list(range(NUM_BLOCKS))
        draw.shuffle(free)
        segments = []
        for _ in range(draw.randint(1, 5)):
            num_tokens, num_context = draw.choice([1, 1, 3]), draw.randint(1, 40)
            blocks, context = (
                tuple(free.pop() for _ in range(-(-n // BLOCK))) for n in (num_tokens, num_context)
            )
            segments.append(Segment(num_tokens, 0, blocks, context, num_context, new_context=True))
        packed, pages = PackedTokens(segments, BLOCK, CPU), Pages(pool, GatheredAttention(pool))
        pages.begin(packed)
        total = sum(s.num_context for s in segments)
        keys, values = (torch.randn(total, 2, 8, dtype=torch.float64) for _ in "kv")
        pages.write_context(0, keys, values)
        queries = torch.randn(len(packed.positions_T), 2, 8, dtype=torch.float64)
        found, row, at = pages.attend_context(0, queries, SCALE), 0, 0
        for segment in segments:
            k, v = (x[at : at + segment.num_context] for x in (keys, values))
            for _ in range(segment.num_tokens):
                weights = (torch.einsum("hd,lhd->hl", queries[row], k) * SCALE).softmax(1)
                torch.testing.assert_close(
                    found[row], torch.einsum("hl,lhv->hv", weights, v), atol=1e-9, rtol=0
                )
                row += 1
            at += segment.num_context


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
