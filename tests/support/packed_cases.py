"""Packed passes over pools with random layouts, and their attention by the formula, token by token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.attention import Attention
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool, LayerShape

NUM_BLOCKS = 200
SCALE = 0.3
WIDTHS = ((8, 8), (16, 16), (16, 4))
STARTS = (0, 7, 30)


@dataclass
class PackedCase:
    """Sequences in scattered or consecutive blocks, some with one new token, some with a chunk."""

    seed: int
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    widths: Sequence[tuple[int, int]] = WIDTHS
    """Of keys and values, one of which is drawn."""
    starts: Sequence[int] = STARTS
    """Tokens that a sequence has before the pass, drawn for each."""
    longest: int = 20
    """New tokens of a sequence, at most."""
    block: int = 4
    draw: random.Random = field(init=False)
    segments: list[Segment] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        torch.manual_seed(self.seed)
        self.heads, self.groups = self.draw.choice([1, 2, 3]), self.draw.choice([1, 2, 4])
        self.width, self.value_width = self.draw.choice(self.widths)
        shape = LayerShape(self.heads, self.width, self.value_width, self.dtype)
        num_blocks = max(NUM_BLOCKS, 6 * -(-(max(self.starts) + self.longest) // self.block))
        self.pool = KvPool([shape], num_blocks, self.block, torch.device(self.device))
        pages = self.pool.layers[0]
        pages.keys[:-1] = pages.values[:-1] = float("nan")  # what nobody wrote must not count
        free = list(range(num_blocks))
        if self.draw.random() < 0.5:
            self.draw.shuffle(free)
        for _ in range(self.draw.randint(1, 6)):
            num_new = self.draw.choice([1, 1, 1, self.draw.randint(1, self.longest)])
            start = self.draw.choice(self.starts)
            blocks = tuple(free.pop(0) for _ in range(-(-(start + num_new) // self.block)))
            self.segments.append(Segment(num_new, start, blocks))
            self.keys.append(self.random(start + num_new, self.heads, self.width))
            self.values.append(self.random(start + num_new, self.heads, self.value_width))
        self.packed = PackedTokens(self.segments, self.block, torch.device(self.device))
        self.queries = self.random(self.packed.num_tokens, self.num_query_heads, self.width)

    @property
    def num_query_heads(self) -> int:
        return self.heads * self.groups

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(self.device, self.dtype)

    def pages(self, attention: Attention) -> Pages:
        """Everything written, the earlier tokens before the pass."""
        for segment, k, v in zip(self.segments, self.keys, self.values, strict=True):
            places = [self.packed.place(segment.blocks, p) for p in range(segment.start)]
            self.pool.layers[0].write(
                torch.tensor(places, dtype=torch.int64, device=self.device),
                k[: segment.start],
                v[: segment.start],
            )
        pages = Pages(self.pool, attention)
        pages.begin(self.packed)
        new = [
            torch.cat([x[s.start :] for s, x in zip(self.segments, of, strict=True)])
            for of in (self.keys, self.values)
        ]
        pages.write(0, *new)
        return pages

    def plain(
        self, allowed: Callable[[int, int], bool], bias: Tensor | None = None, sinks: Tensor | None = None
    ) -> Tensor:
        """Each token by the formula, in float64 on the host; `bias` (heads, distance) is added to scores."""
        rows, out = iter(self.queries.cpu().double()), []
        for segment, keys, values in zip(self.segments, self.keys, self.values, strict=True):
            k, v = (x.cpu().double().repeat_interleave(self.groups, 1) for x in (keys, values))
            for place in range(segment.start, segment.end):
                scores = torch.einsum("hd,lhd->hl", next(rows), k) * SCALE
                for other in range(segment.end):
                    if not allowed(place, other):
                        scores[:, other] = -torch.inf
                    elif bias is not None:
                        scores[:, other] += bias[:, place - other]
                if sinks is not None:
                    scores = torch.cat([scores, sinks.cpu().double()[:, None]], dim=1)
                weights = scores.softmax(1)[:, : segment.end]
                out.append(torch.einsum("hl,lhv->hv", weights, v))
        return torch.stack(out)

    def each_alone(self, pages: Pages, rule: AttentionRule) -> Tensor:
        """What `pages` gives each sequence in a pass of its own. Everything is written."""
        out = []
        for row, segment in zip(self.packed.first_rows, self.segments, strict=True):
            pages.begin(PackedTokens([segment], self.block, torch.device(self.device)))
            out.append(pages.attend(0, self.queries[row : row + segment.num_tokens], rule))
        return torch.cat(out)


def seeing(window: int = 10**6, chunk: int = 10**6) -> Visible:
    """So many tokens, the own among them, of as many as are cut apart."""

    def visible(q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k > q - window) & (q // chunk == k // chunk)

    return visible


@dataclass
class ContextCase:
    """Tokens of decoders, whose prompts are in the pool."""

    seed: int
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    longest: int = 40
    """Tokens of a prompt, at most."""
    width: int = 8
    block: int = 4

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        torch.manual_seed(self.seed)
        device = torch.device(self.device)
        layer = LayerShape(2, self.width, self.width, self.dtype)
        self.pool = KvPool([layer], NUM_BLOCKS, self.block, device)
        free = list(range(NUM_BLOCKS))
        draw.shuffle(free)
        self.segments = []
        for _ in range(draw.randint(1, 5)):
            num_tokens, num_context = draw.choice([1, 1, 3]), draw.randint(1, self.longest)
            blocks, context = (
                tuple(free.pop() for _ in range(-(-n // self.block))) for n in (num_tokens, num_context)
            )
            self.segments.append(Segment(num_tokens, 0, blocks, context, num_context, new_context=True))
        self.packed = PackedTokens(self.segments, self.block, device)
        total = sum(s.num_context for s in self.segments)
        shape = (2, self.width)
        self.keys, self.values, self.queries = (
            torch.randn(n, *shape, dtype=torch.float64).to(device, self.dtype)
            for n in (total, total, self.packed.num_tokens)
        )

    def attend(self, attention: Attention) -> Tensor:
        """By pages over it."""
        pages = Pages(self.pool, attention)
        pages.begin(self.packed)
        pages.write_context(0, self.keys, self.values)
        return pages.attend_context(0, self.queries, SCALE)

    def plain(self) -> Tensor:
        """By the formula, in float64 on the host."""
        rows, at, out = iter(self.queries.cpu().double()), 0, []
        for segment in self.segments:
            k, v = (x[at : at + segment.num_context].cpu().double() for x in (self.keys, self.values))
            for _ in range(segment.num_tokens):
                weights = (torch.einsum("hd,lhd->hl", next(rows), k) * SCALE).softmax(1)
                out.append(torch.einsum("hl,lhv->hv", weights, v))
            at += segment.num_context
        return torch.stack(out)
