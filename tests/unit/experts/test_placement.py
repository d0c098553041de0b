from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.experts.placement import every_expert, spread_evenly
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertId, ExpertLayer


def layers_of(sizes: list[int]) -> list[ExpertLayer]:
    layout = BlobLayout.pack({"up": (1,)}, torch.uint8)
    return [ExpertLayer("", layout, ExpertFFN(torch.relu), ((),) * size, top_k=1) for size in sizes]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.floats(0, 1))
def test_the_experts_held_are_the_same_share_of_every_layer(sizes: list[int], share: float) -> None:
    count = round(share * sum(sizes))
    held = spread_evenly(layers_of(sizes), count)
    assert len(set(held)) == len(held) == count
    assert set(held) <= set(every_expert(layers_of(sizes)))
    per_layer = Counter(e.layer for e in held)
    # No layer has a larger share than another would have with one expert more.
    most = min((per_layer[i] + 1) / size for i, size in enumerate(sizes))
    assert all(per_layer[i] / size <= most for i, size in enumerate(sizes))


def test_half_of_layers_of_different_sizes_is_half_of_each() -> None:
    held = spread_evenly(layers_of([8, 16, 4]), 14)
    assert Counter(e.layer for e in held) == {0: 4, 1: 8, 2: 2}
    assert held == spread_evenly(layers_of([8, 16, 4]), 14)


def test_every_expert_comes_once_in_order() -> None:
    assert every_expert(layers_of([2, 1])) == [ExpertId(0, 0), ExpertId(0, 1), ExpertId(1, 0)]
