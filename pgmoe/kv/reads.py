"""Which tokens of the pool each token of a pass looks at, put together to few calls of attention.

Made on the host, once a pass for all layers that see alike. Shape letters: B sequences, N tokens of each that
look, L tokens that each looks at, H heads (1 where all are alike); T tokens of the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Bias, Visible
from pgmoe.kv.packed import PackedTokens, Segment

CALL_BYTES = 16 * 2**20
"""Of keys and values gathered for one call of attention, and of its mask; more for a longer sequence."""


@dataclass(frozen=True)
class Read:
    """One call of attention: one token of each of B sequences, or N tokens of a single one."""

    rows: Tensor | slice
    """Of the pass: the B * N tokens that look."""
    num_sequences: int
    num_keys: int
    places: Tensor | slice
    """In the pool: the B * L tokens looked at."""
    mask: Tensor | None = None
    """(B, H, N, L): added to the scores: -inf forbids."""
    causal: bool = False
    """Whether N is L and each looks at itself and those before it; there is no mask then."""


@dataclass(frozen=True)
class ReadLimits:
    """What bounds the memory of one call."""

    token_bytes: int
    """Of one token's keys and values in a layer."""
    mask_bytes: int
    """Of an element of the mask, times the heads where they differ."""

    @property
    def most_keys(self) -> int:
        """Tokens gathered at once."""
        return CALL_BYTES // self.token_bytes

    def most_queries(self, num_keys: int) -> int:
        """Tokens that look at so many at once."""
        return max(1, CALL_BYTES // (num_keys * self.mask_bytes))


class ReadPlanner:
    """Plans the reads of one pass."""

    def __init__(self, packed: PackedTokens, nothing: int, dtype: torch.dtype) -> None:
        """`nothing`: a place of zeros; `dtype`: of masks."""
        self._packed = packed
        self._nothing = nothing
        self._dtype = dtype

    def own(self, rule: AttentionRule, limits: ReadLimits) -> list[Read]:
        """What tokens look at in their own sequence. With sinks, at `nothing` last of all."""
        made: list[Read] = []
        for group in _grouped(self._segments(lone=True), limits.most_keys):
            made.append(self._lone(group, rule))
        for row, segment in self._segments(lone=False):
            for first in range(0, segment.num_tokens, size := limits.most_queries(segment.end)):
                rows = range(first, min(first + size, segment.num_tokens))
                made.append(self._chunk(row, segment, rows, rule))
        return made

    def context(self, limits: ReadLimits) -> list[Read]:
        """What a decoder's tokens look at in their prompt: all of it."""
        there = [
            (row, Segment(s.num_tokens, s.num_context - s.num_tokens, s.context_blocks))
            for row, s in zip(self._packed.first_rows, self._packed.segments, strict=True)
        ]
        lone = [(row, s) for row, s in there if s.num_tokens == 1]
        rule = AttentionRule(everything, scale=1)
        made = [self._lone(group, rule) for group in _grouped(lone, limits.most_keys)]
        for row, s in there:
            if s.num_tokens > 1:
                keys_1L = torch.arange(s.end)[None]
                places = self._places([s.blocks], keys_1L, keys_1L >= 0, sinks=False)
                made.append(Read(slice(row, row + s.num_tokens), 1, s.end, places))
        return made

    def _segments(self, *, lone: bool) -> list[tuple[int, Segment]]:
        """(first row, segment) of those with one token, or of the others."""
        packed = self._packed
        pairs = zip(packed.first_rows, packed.segments, strict=True)
        return [(row, s) for row, s in pairs if (s.num_tokens == 1) == lone]

    def _lone(self, group: Sequence[tuple[int, Segment]], rule: AttentionRule) -> Read:
        sinks = rule.sinks is not None
        ends = [s.end for _, s in group]
        queries_B1 = torch.tensor(ends)[:, None] - 1
        starts_B1 = _first_visible(rule.visible, queries_B1, max(ends))
        num_keys = int((queries_B1 + 1 - starts_B1).max())
        keys_BL = starts_B1 + torch.arange(num_keys)
        there_BL = (keys_BL <= queries_B1) & rule.visible(queries_B1, keys_BL)
        whole = bool(there_BL.all())
        places: Tensor | slice | None = None
        if len(group) == 1 and not sinks:
            places = self._run(group[0][1], int(starts_B1), ends[0])
        if places is None:
            places = self._places([s.blocks for _, s in group], keys_BL, keys_BL <= queries_B1, sinks)
        rows = [row for row, _ in group]
        consecutive = rows == list(range(rows[0], rows[0] + len(rows)))
        needs_mask = not whole or rule.bias is not None or sinks
        return Read(
            rows=slice(rows[0], rows[-1] + 1) if consecutive else self._moved(torch.tensor(rows)),
            num_sequences=len(group),
            num_keys=num_keys,
            places=places,
            mask=self._mask(queries_B1, keys_BL, there_BL[:, None], rule.bias) if needs_mask else None,
        )

    def _chunk(self, row: int, segment: Segment, rows: range, rule: AttentionRule) -> Read:
        """Some consecutive tokens of one sequence, by their numbers in its segment."""
        sinks = rule.sinks is not None
        queries_1N = segment.start + torch.arange(rows.start, rows.stop)[None]
        end = segment.start + rows.stop
        start = int(_first_visible(rule.visible, queries_1N[:, :1], end))
        keys_1L = torch.arange(start, end)[None]
        there_1NL = rule.visible(queries_1N[:, :, None], keys_1L[:, None])
        causal = start == segment.start + rows.start and rule.bias is None and not sinks
        causal = causal and torch.equal(there_1NL[0], torch.ones_like(there_1NL[0]).tril())
        places: Tensor | slice | None = None if sinks else self._run(segment, start, end)
        if places is None:
            places = self._places([segment.blocks], keys_1L, keys_1L >= 0, sinks)
        return Read(
            rows=slice(row + rows.start, row + rows.stop),
            num_sequences=1,
            num_keys=end - start,
            places=places,
            mask=None if causal else self._mask(queries_1N, keys_1L, there_1NL, rule.bias),
            causal=causal,
        )

    def _mask(self, queries_BN: Tensor, keys_BL: Tensor, there_BNL: Tensor, bias: Bias | None) -> Tensor:
        mask = torch.zeros(there_BNL.shape, dtype=self._dtype).masked_fill_(~there_BNL, -torch.inf)
        mask_BHNL = self._moved(mask[:, None])
        if bias is None:
            return mask_BHNL
        return mask_BHNL + bias(self._moved(queries_BN), self._moved(keys_BL))

    def _run(self, segment: Segment, start: int, end: int) -> slice | None:
        """The places of these positions where they follow each other: a view of the pool, no copy."""
        size = self._packed.block_tokens
        first, last = start // size, (end - 1) // size
        blocks = segment.blocks
        if any(blocks[i + 1] != blocks[i] + 1 for i in range(first, last)):
            return None
        at = self._packed.place(blocks, start)
        return slice(at, at + end - start)

    def _places(
        self, tables: Sequence[Sequence[int]], keys_BL: Tensor, there_BL: Tensor, sinks: bool
    ) -> Tensor:
        size, longest = self._packed.block_tokens, max(map(len, tables))
        blocks_BM = torch.tensor([[*t, *[0] * (longest - len(t))] for t in tables])
        block_BL = blocks_BM.gather(1, (keys_BL // size).clamp(max=longest - 1))
        places_BL = torch.where(there_BL, block_BL * size + keys_BL % size, self._nothing)
        if sinks:
            places_BL = torch.cat([places_BL, places_BL.new_full((len(tables), 1), self._nothing)], dim=1)
        return self._moved(places_BL.flatten())

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._packed.device)


def everything(queries: Tensor, keys: Tensor) -> Tensor:
    """Who looks at all there is."""
    return (queries >= 0) & (keys >= 0)


def _first_visible(visible: Visible, queries_B1: Tensor, end: int) -> Tensor:
    """The first position that each may look at (B, 1), if it looks at all from there to itself."""
    there_BL = visible(queries_B1, torch.arange(end)[None])
    return there_BL.int().argmax(dim=1, keepdim=True)


def _grouped(tokens: Sequence[tuple[int, Segment]], most_keys: int) -> Iterator[list[tuple[int, Segment]]]:
    """Tokens that look at similarly many, so that little is filled up, within `most_keys` of a call."""
    group: list[tuple[int, Segment]] = []
    for row, segment in sorted(tokens, key=lambda token: (-token[1].end, token[0])):
        longest = group[0][1].end if group else 0
        if group and ((len(group) + 1) * longest > most_keys or 2 * segment.end < longest > 256):
            yield group
            group = []
        group.append((row, segment))
    if group:
        yield group
