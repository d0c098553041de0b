from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.engine.roofline import TokenCost, predict
from pgmoe.routing import expected_distinct

COST = TokenCost(experts_used=8, expert_bytes=1000, num_experts=100, compute_s=0.1, bandwidth=16_000)


def test_with_all_experts_on_the_device_compute_is_the_limit() -> None:
    found = predict(COST, 100)
    assert (found.hit_rate, found.miss_bytes, found.limit) == (1.0, 0.0, "compute")
    assert found.tokens_per_s == pytest.approx(10)


def test_with_few_slots_the_link_is() -> None:
    found = predict(COST, 25)
    assert (found.miss_bytes, found.limit) == (6000, "link")
    assert found.tokens_per_s == pytest.approx(16_000 / 6000)


def test_a_known_hit_rate_is_taken_instead_of_the_uniform_one() -> None:
    assert predict(COST, 25, hit_rate=0.9).miss_bytes == pytest.approx(800)
    assert predict(COST, 25, hit_rate=0.9).limit == "compute"


@given(st.integers(0, 99))
def test_one_more_slot_never_predicts_less(num_slots: int) -> None:
    assert predict(COST, num_slots).tokens_per_s <= predict(COST, num_slots + 1).tokens_per_s


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
