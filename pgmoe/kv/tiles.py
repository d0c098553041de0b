"""What a pass's attention is cut into for kernels: tiles of tokens, or of one token's positions."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.spans import Spans

PART_KEYS = 512
"""Positions that a tile of a lone token looks at, at most: a few long sequences keep all processors busy."""


@dataclass(frozen=True)
class BlockTable:
    """The blocks of all sequences, one after the other."""

    blocks: Tensor
    """int32."""
    starts: Sequence[int]
    """In it, of each sequence."""

    @classmethod
    def of(cls, tables: Sequence[Sequence[int]], device: torch.device) -> BlockTable:
        """In the order of the sequences."""
        starts = list(accumulate(map(len, tables), initial=0))[:-1]
        blocks = array("i")
        for table in tables:
            blocks += array("i", table)
        return cls(torch.frombuffer(blocks, dtype=torch.int32).to(device), starts)


@dataclass(frozen=True)
class Parts:
    """Tiles of lone tokens that are computed at once: each token's are merged after that."""

    tiles: Tensor
    """Five int32 for each, see `block_kernel.attend_tile`."""
    merges: Tensor
    """Three for each token, see `block_kernel.merge_parts`."""


@dataclass(frozen=True)
class Tiles:
    """A pass's: its sequences of several tokens in tiles of some, lone tokens in parts."""

    chunks: Tensor | None
    """Five int32 for each, see `block_kernel.attend_tile`."""
    parts: Sequence[Parts]

    @classmethod
    def of(
        cls, packed: PackedTokens, spans: Spans, table: BlockTable, tile_tokens: int, most_parts: int
    ) -> Tiles:
        """`tile_tokens`: of a tile at most. `most_parts`: at once, unless a single token has more."""
        chunks: list[list[int]] = []
        lone: list[list[list[int]]] = []
        for row, segment, at in zip(packed.first_rows, packed.segments, table.starts, strict=True):
            if segment.num_tokens == 1:
                cuts = _cuts(spans.firsts[row], spans.ends[row])
                lone.append([[row, 1, at, first, end] for first, end in cuts])
                continue
            chunks += chunk_tiles(row, segment, at, spans, tile_tokens)
        device = packed.device
        return cls(int32(chunks, device) if chunks else None, _grouped(lone, most_parts, device))


def chunk_tiles(
    row: int, segment: Segment, table_start: int, spans: Spans, tile_tokens: int
) -> Iterator[list[int]]:
    """A sequence's tokens, which begin at `row`, some at a time: five numbers each, see Tiles.chunks."""
    for first_row in range(row, row + segment.num_tokens, tile_tokens):
        rows = slice(first_row, min(first_row + tile_tokens, row + segment.num_tokens))
        first, end = min(spans.firsts[rows]), max(spans.ends[rows])
        yield [first_row, rows.stop - rows.start, table_start, first, end]


def int32(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(N, M) of rows of M numbers."""
    numbers = array("i", list(chain.from_iterable(rows)))
    return torch.frombuffer(numbers, dtype=torch.int32).view(len(rows), -1).to(device)


def _cuts(first: int, end: int) -> list[tuple[int, int]]:
    """At multiples of PART_KEYS, wherever a token's positions begin: where they are cut is its own affair."""
    inner = range((first // PART_KEYS + 1) * PART_KEYS, end, PART_KEYS)
    return list(zip([first, *inner], [*inner, end], strict=True))


def _grouped(lone: Sequence[list[list[int]]], most_parts: int, device: torch.device) -> list[Parts]:
    made: list[Parts] = []
    tiles: list[list[int]] = []
    merges: list[list[int]] = []
    for number, of_token in enumerate(lone):
        merges.append([of_token[0][0], len(tiles), len(tiles) + len(of_token)])
        tiles += of_token
        if number + 1 == len(lone) or len(tiles) + len(lone[number + 1]) > most_parts:
            made.append(Parts(int32(tiles, device), int32(merges, device)))
            tiles, merges = [], []
    return made
