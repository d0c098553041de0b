from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmoe.experts.grouping import TokenGroups

NUM_EXPERTS, WIDTH = 6, 5
choices = st.integers(1, 7).flatmap(
    lambda k: st.lists(
        st.lists(st.integers(0, 7), min_size=k, max_size=k, unique=True), min_size=1, max_size=9
    )
)
"""Of a few tokens; 6 and 7 stand for no expert."""
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@settings(deadline=None)
@given(choices)
def test_every_token_of_every_expert_has_a_row_in_order(index: list[list[int]]) -> None:
    groups = TokenGroups.of(torch.tensor(index), NUM_EXPERTS)
    tokens: dict[int, list[int]] = {}
    places: dict[int, list[int]] = {}
    for token, experts in enumerate(index):
        for choice, expert in enumerate(experts):
            if expert < NUM_EXPERTS:
                tokens.setdefault(expert, []).append(token)
                places.setdefault(expert, []).append(token * len(experts) + choice)
    assert groups.experts == sorted(tokens)
    assert {e: t.tolist() for e, t in groups.split(groups.tokens).items()} == tokens
    assert {e: p.tolist() for e, p in groups.split(groups.places).items()} == places


@settings(deadline=None)
@given(
    choices,
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_are_weighted_rounded_and_added_in_ascending_order_of_the_experts(
    index: list[list[int]], dtype: torch.dtype, router: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(index), len(index[0]), generator=generator).to(router)
    outputs = torch.randn(NUM_EXPERTS, len(index), WIDTH, generator=generator).to(
        dtype
    )  # of expert and token
    groups = TokenGroups.of(torch.tensor(index), NUM_EXPERTS)
    rows = torch.empty(len(groups.tokens), WIDTH, dtype=dtype)
    for expert, rows_of_expert in groups.split(rows).items():
        rows_of_expert.copy_(outputs[expert, groups.split(groups.tokens)[expert]])
    expected = torch.zeros(len(index), WIDTH, dtype=dtype)
    for token, experts in enumerate(index):
        for expert in sorted(set(experts) - {6, 7}):
            weight = weights[token, experts.index(expert)].view(1)
            expected[token] += (outputs[expert, token] * weight).to(dtype)
    assert torch.equal(groups.add_up(rows, weights), expected)
