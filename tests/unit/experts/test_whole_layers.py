from __future__ import annotations

import random

import pytest

from pgmoe.experts.whole_layers import WholeLayers, expected_distinct
from pgmoe.routing import Prediction


def of_two(num_experts: int = 64, top_k: int = 8, weight_bytes: int = 1000) -> WholeLayers:
    return WholeLayers([num_experts] * 2, [top_k] * 2, weight_bytes)


def test_all_of_a_layer_are_those_that_are_guessed_and_then_the_others() -> None:
    whole = WholeLayers([2, 5], [1, 1], 10)
    assert whole.all_of(Prediction(1, (3, 1), (1.0, 1.0))) == [3, 1, 0, 2, 4]


def test_only_passes_concern_in_which_every_layer_may_be_used_whole() -> None:
    whole = WholeLayers([8, 64], [2, 8], 10)
    assert [whole.concerns(num_tokens) for num_tokens in (1, 4, 7, 8)] == [False, False, False, True]
    assert not WholeLayers([2], [2], 10).concerns(1), "a single token chooses all"


@pytest.mark.parametrize("num_tokens", [8, 16, 31, 64])
def test_it_pays_where_the_link_carries_what_is_fetched_in_vain(num_tokens: int) -> None:
    """Uniform routing, all 64 missing: E - d of them are in vain."""
    in_vain = 1000 * (64 - expected_distinct(64, 8, num_tokens))
    assert of_two().pays(1, num_tokens, 64, in_vain * 1.001)
    assert not of_two().pays(1, num_tokens, 64, in_vain * 0.999)


def test_it_never_pays_for_fewer_tokens_than_one_for_each_expert() -> None:
    assert not of_two().pays(1, 7, 64, 1e12)
    assert of_two().pays(1, 8, 64, 1e12)


def test_what_is_missing_decides_how_much_may_be_in_vain() -> None:
    in_vain = 1000 * 16 * (1 - expected_distinct(64, 8, 16) / 64)
    assert of_two().pays(1, 16, 16, in_vain * 1.001)
    assert not of_two().pays(1, 16, 17, in_vain)


def test_a_layer_that_uses_few_of_its_experts_is_not_fetched_whole() -> None:
    whole = of_two()
    room = 64 * 1000 * 0.1
    assert whole.pays(1, 1000, 64, room)
    for _ in range(100):
        whole.observe(1, 1000, 32)
    assert not whole.pays(1, 1000, 64, room)
    assert whole.pays(0, 1000, 64, room), "the other layer's routing is its own"
    for _ in range(100):
        whole.observe(1, 1000, 64)
    assert whole.pays(1, 1000, 64, room)


@pytest.mark.parametrize(("num_experts", "top_k", "num_tokens"), [(8, 2, 1), (8, 2, 4), (64, 8, 16)])
def test_the_expected_number_of_distinct_experts_is_that_of_many_draws(
    num_experts: int, top_k: int, num_tokens: int
) -> None:
    chance = random.Random(7)
    draws = [
        len({e for _ in range(num_tokens) for e in chance.sample(range(num_experts), top_k)})
        for _ in range(3000)
    ]
    expected = expected_distinct(num_experts, top_k, num_tokens)
    assert expected == pytest.approx(sum(draws) / len(draws), rel=0.02)
