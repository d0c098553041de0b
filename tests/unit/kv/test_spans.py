"""Which run of positions each token looks at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgmoe.kv import spans
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.spans import Spans

SEGMENTS = (Segment(3, 4, (0, 1)), Segment(1, 9, (2, 3, 4), (5,), 2), Segment(2, 0, (6,), (7, 8), 6))


@pytest.fixture(params=[1, 20, 2**20])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PackedTokens:
    """Asked a token at a time, some of one sequence, or all at once."""
    monkeypatch.setattr(spans, "CHECKED_AT_ONCE", request.param)
    return PackedTokens(SEGMENTS, 4, torch.device("cpu"))


def found(spans: Spans | None) -> list[tuple[int, int]]:
    assert spans is not None
    assert spans.both.T.tolist() == [spans.firsts, spans.ends]
    return list(zip(spans.firsts, spans.ends, strict=True))


def test_a_token_sees_what_is_before_it_and_itself(packed: PackedTokens) -> None:
    spans = Spans.own(packed, lambda q, k: k <= q)
    assert found(spans) == [(0, 5), (0, 6), (0, 7), (0, 10), (0, 1), (0, 2)]


def test_a_window_and_a_chunk_are_runs(packed: PackedTokens) -> None:
    window = Spans.own(packed, lambda q, k: (k <= q) & (k > q - 4))
    assert found(window) == [(1, 5), (2, 6), (3, 7), (6, 10), (0, 1), (0, 2)]
    chunk = Spans.own(packed, lambda q, k: (k <= q) & (k // 5 == q // 5))
    assert found(chunk) == [(0, 5), (5, 6), (5, 7), (5, 10), (0, 1), (0, 2)]


def test_who_sees_forward_sees_no_further_than_its_sequence(packed: PackedTokens) -> None:
    spans = Spans.own(packed, lambda q, k: (q >= 0) & (k >= 0))
    assert found(spans) == [(0, 7), (0, 7), (0, 7), (0, 10), (0, 2), (0, 2)]


@pytest.mark.parametrize("gap", [0, 2, 8])
def test_what_has_a_gap_is_no_run(packed: PackedTokens, gap: int) -> None:
    def visible(q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & ((q < 9) | (k != gap) | (gap == 0))

    assert (Spans.own(packed, visible) is None) == (gap > 0)


def test_who_sees_nothing_has_no_run(packed: PackedTokens) -> None:
    assert Spans.own(packed, lambda q, k: (k <= q) & (q != 9)) is None


def test_a_prompt_is_seen_whole(packed: PackedTokens) -> None:
    assert found(Spans.context(packed)) == [(0, 0)] * 3 + [(0, 2)] + [(0, 6)] * 2
