"""What a pass's attention is cut into."""

from __future__ import annotations

import pytest
import torch

from pgmoe.kv import tiles
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.spans import Spans
from pgmoe.kv.tile_shape import TileShape
from pgmoe.kv.tiles import BlockTable, Tiles

WHOLE_PART = tiles.PART_KEYS
CPU = torch.device("cpu")
SEGMENTS = (
    Segment(5, 2, (3, 1)),
    Segment(1, 9, (2, 5, 4)),
    Segment(1, 0, (0,)),
    Segment(1, 7, (6, 7)),
)


def cut(most_parts: int, window: int) -> Tiles:
    packed = PackedTokens(SEGMENTS, 4, CPU)
    spans = Spans.own(packed, lambda q, k: (k <= q) & (k > q - window))
    assert spans is not None
    table = BlockTable.of([s.blocks for s in SEGMENTS], CPU)
    assert table.blocks.tolist() == [3, 1, 2, 5, 4, 0, 6, 7]
    return Tiles.of(packed, spans, table, tile_tokens=2, most_parts=most_parts)


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PART_KEYS", 4)


def test_a_chunk_is_cut_after_some_tokens_and_reads_what_one_of_them_sees() -> None:
    chunks = cut(most_parts=100, window=3).chunks
    assert chunks is not None
    assert chunks.tolist() == [[0, 2, 0, 0, 4], [2, 2, 0, 2, 6], [4, 1, 0, 4, 7]]


def test_a_lone_token_is_cut_at_the_same_positions_wherever_it_begins_to_look() -> None:
    (parts,) = cut(most_parts=100, window=100).parts
    assert [row[3:] for row in parts.tiles.tolist() if row[0] == 5] == [[0, 4], [4, 8], [8, 10]]
    (parts,) = cut(most_parts=100, window=8).parts
    assert [row[3:] for row in parts.tiles.tolist() if row[0] == 5] == [[2, 4], [4, 8], [8, 10]]
    assert parts.merges.tolist() == [[5, 0, 3], [6, 3, 4], [7, 4, 6]]


def test_parts_are_computed_a_few_at_a_time_and_those_of_a_token_at_once() -> None:
    first, second, third = cut(most_parts=2, window=100).parts
    assert [len(parts.tiles) for parts in (first, second, third)] == [3, 1, 2]
    assert [parts.merges.tolist() for parts in (first, second, third)] == [
        [[5, 0, 3]],
        [[6, 0, 1]],
        [[7, 0, 2]],
    ]
    first, second = cut(most_parts=4, window=100).parts
    assert second.merges.tolist() == [[7, 0, 2]]


def test_a_part_ends_with_a_step_of_any_layer() -> None:
    for widths in ((8, 8), (64, 64), (128, 128), (192, 128), (576, 512)):
        for dtype in (torch.float32, torch.bfloat16):
            shape = TileShape(2, 5, *widths, dtype)
            assert WHOLE_PART % shape.keys == 0
            assert shape.chunk_tokens * shape.groups <= shape.chunk_lanes
