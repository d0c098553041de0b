"""Shape letters: R rows, V vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pgmoe.engine.draw import draw
from pgmoe.request import SamplingParams

FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.7},
    {"min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.2},
    {"temperature": 2.0, "top_k": 9, "top_p": 0.95, "min_p": 0.15},
    {"top_p": 1e-9},
    {"top_k": 1000},
    {"top_k": 1},
    {"min_p": 1.0},
]


def transformers_probabilities(logits_V: Tensor, params: dict[str, Any]) -> Tensor:
    """What transformers' own chain draws from, in the order of its `generate`."""
    chain = LogitsProcessorList(
        [
            TemperatureLogitsWarper(float(params.get("temperature", 1.0))),
            TopKLogitsWarper(params.get("top_k") or logits_V.numel()),
            TopPLogitsWarper(params.get("top_p", 1.0)),
            MinPLogitsWarper(params.get("min_p", 0.0)),
        ]
    )
    ids: Any = torch.zeros(1, 0, dtype=torch.long)
    return chain(ids, logits_V[None].clone())[0].softmax(dim=-1)


def frequencies(logits_V: Tensor, params: dict[str, Any], count: int) -> Tensor:
    """How often each token comes for `count` evenly spaced random numbers: to 1 / count exact."""
    scores_RV = (logits_V - logits_V.max()).expand(count, -1)
    ids_R = draw(scores_RV, [SamplingParams(**params)] * count, [(i + 0.5) / count for i in range(count)])
    return torch.bincount(ids_R, minlength=logits_V.numel()) / count


def random_logits(size: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("params", FILTERS)
@pytest.mark.parametrize("seed", range(4))
def test_tokens_come_as_often_as_transformers_chain_says(params: dict[str, Any], seed: int) -> None:
    logits_V = random_logits(12, seed)
    expected = transformers_probabilities(logits_V, params)
    seen = frequencies(logits_V, params, 1000)
    torch.testing.assert_close(seen, expected, rtol=0, atol=0.00101)
    assert not seen[expected == 0].any()


@pytest.mark.parametrize("params", FILTERS)
@pytest.mark.parametrize("seed", range(4))
def test_of_equal_tokens_as_many_stay_as_in_transformers(params: dict[str, Any], seed: int) -> None:
    logits_V = random_logits(30, seed).round()
    expected = transformers_probabilities(logits_V, params)
    seen = frequencies(logits_V, params, 2000)
    for value in set(logits_V.tolist()):
        equal = logits_V == value
        kept = int((expected[equal] > 0).sum())  # which ones depends on its unstable sort
        share = expected[equal].max()
        torch.testing.assert_close(seen[equal][:kept], share.expand(kept), rtol=0, atol=0.00051)
        assert not seen[equal][kept:].any()


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
@pytest.mark.parametrize(
    "params",
    [
        {"top_p": 0.9},
        {"top_p": 0.3},
        {"top_k": 127},
        {"top_k": 128},
        {"top_k": 1500},
        {"top_k": 3000, "top_p": 0.9},
        {"top_p": 0.99, "min_p": 0.01},
    ],
)
def test_filters_of_a_large_vocabulary_are_exact(params: dict[str, Any], scale: float) -> None:
    """Whether what stays is more than what is tried first (flat logits) or less (peaked ones)."""
    logits_V, count = random_logits(4000, seed=5, scale=scale), 300
    expected = transformers_probabilities(logits_V, params)
    seen = frequencies(logits_V, params, count)
    assert not seen[expected == 0].any()
    order = logits_V.argsort(descending=True)
    # the shares of the likeliest tokens, however many: draws are evenly spaced in this order or that of ids
    in_order = (seen[order].cumsum(0) - expected[order].cumsum(0)).abs()
    in_ids = (seen.cumsum(0) - expected.cumsum(0)).abs()
    assert min(in_order.max(), in_ids.max()) <= 1.01 / count


def test_top_p_is_a_share_of_the_whole_vocabulary() -> None:
    """The tenth token belongs to the nucleus only if the 20,000 unlikely ones are counted, too."""
    head = torch.tensor([0.1] * 8 + [0.06, 0.05])
    tail = torch.full((20_000,), (1 - head.sum().item()) / 20_000)
    seen = frequencies(torch.cat([head, tail]).log(), {"top_p": 0.9}, 400)
    assert seen.nonzero().flatten().tolist() == list(range(10))


@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"top_p": 0.99}, {"min_p": 0.01}, {"top_k": 1999}])
def test_what_is_forbidden_is_never_drawn(params: dict[str, Any]) -> None:
    logits_V = torch.full((2000,), -torch.inf)
    logits_V[[7, 1500, 1999]] = torch.tensor([0.5, 1.0, 0.0])
    seen = frequencies(logits_V, params, 100)
    assert set(seen.nonzero().flatten().tolist()) == {7, 1500, 1999}


@pytest.mark.parametrize("params", FILTERS)
def test_the_ends_of_the_random_numbers_draw_what_may_be_drawn(params: dict[str, Any]) -> None:
    for seed in range(20):
        logits_V = random_logits(50, seed)
        scores_RV = (logits_V - logits_V.max()).expand(2, -1)
        ids_R = draw(scores_RV, [SamplingParams(**params)] * 2, [0.0, 1 - 2.0**-53])
        assert (transformers_probabilities(logits_V, params)[ids_R] > 0).all()


def test_rows_of_all_kinds_are_drawn_at_once_as_one_by_one() -> None:
    params = [SamplingParams(**one) for one in FILTERS]
    scores_RV = torch.stack([random_logits(1500, seed) for seed in range(len(params))])
    scores_RV -= scores_RV.amax(dim=-1, keepdim=True)
    uniform = torch.rand(
        len(params), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).tolist()
    one_by_one = [draw(scores_RV[[i]], [params[i]], [uniform[i]]).item() for i in range(len(params))]
    assert draw(scores_RV, params, uniform).tolist() == one_by_one
