from __future__ import annotations

from pgmoe.experts.warmth import Warmth
from pgmoe.layout import ExpertId

A, B = ExpertId(0, 0), ExpertId(1, 0)


def test_an_expert_is_warm_in_the_turn_that_used_it_alone() -> None:
    warmth = Warmth()
    warmth.next_turn(0)
    assert warmth.is_cold(A)
    warmth.used(A)
    assert not warmth.is_cold(A)
    assert warmth.is_cold(B)
    warmth.next_turn(1)
    assert warmth.is_cold(A)


def test_what_is_expected_of_a_layer_is_replaced_by_news_and_over_with_its_turn() -> None:
    warmth = Warmth()
    warmth.expect(0, [A])
    warmth.expect(1, [B])
    assert A in warmth.expected
    assert B in warmth.expected
    warmth.expect(0, [ExpertId(0, 3)])
    assert A not in warmth.expected
    warmth.next_turn(1)
    assert B not in warmth.expected
    assert ExpertId(0, 3) in warmth.expected
