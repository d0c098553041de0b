from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.engine.roofline import TokenCost, predict

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
