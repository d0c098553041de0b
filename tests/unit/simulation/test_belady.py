from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmoe.experts.policies import POLICIES, make_policy
from pgmoe.layout import ExpertId
from pgmoe.simulation.belady import belady_misses
from pgmoe.simulation.demand import Demand
from pgmoe.simulation.replay import replay_misses

NUM_LAYERS, NUM_EXPERTS = 3, 4


def demand(layer: int, *experts: int) -> Demand:
    return tuple(ExpertId(layer, expert) for expert in sorted(experts))


def demands_of(num_layers: int, num_experts: int, most: int) -> st.SearchStrategy[list[Demand]]:
    """Any layers in any order: an encoder's may come once and a decoder's often."""
    experts = st.sets(st.integers(0, num_experts - 1), min_size=1)
    one = st.builds(lambda layer, chosen: demand(layer, *chosen), st.integers(0, num_layers - 1), experts)
    return st.lists(one, max_size=most)


def fewest_misses(wanted: Sequence[Demand], num_slots: int) -> int:
    """By trying everything: after each demand, any choice of what to keep."""

    @cache
    def rest(place: int, resident: frozenset[ExpertId]) -> int:
        if place == len(wanted):
            return 0
        now = frozenset(wanted[place])
        others, room = sorted(resident - now), num_slots - len(now)
        if room >= 0:
            kept = [now.union(some) for some in combinations(others, min(room, len(others)))]
        else:
            kept = [frozenset(some) for some in combinations(sorted(now), num_slots)]
        return len(now - resident) + min(rest(place + 1, choice) for choice in kept)

    return rest(0, frozenset())


@settings(max_examples=300, deadline=None)
@given(demands_of(2, 3, 7), st.integers(1, 5))
def test_it_is_the_optimum(wanted: list[Demand], num_slots: int) -> None:
    assert belady_misses(wanted, num_slots) == fewest_misses(wanted, num_slots)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=100, deadline=None)
@given(demands_of(NUM_LAYERS, NUM_EXPERTS, 40), st.integers(1, NUM_LAYERS * NUM_EXPERTS))
def test_no_policy_misses_less(name: str, wanted: list[Demand], num_slots: int) -> None:
    policy = make_policy(name, [NUM_EXPERTS] * NUM_LAYERS)
    assert belady_misses(wanted, num_slots) <= replay_misses(wanted, num_slots, policy)


def test_a_case_counted_by_hand() -> None:
    # Two slots. a b miss; c goes in b's place, as a is used sooner; a hits; b misses and takes c's, never
    # used again; a hits.
    a, b, c = ((ExpertId(0, i),) for i in range(3))
    assert belady_misses([a, b, c, a, b, a], 2) == 4
    assert replay_misses([a, b, c, a, b, a], 2, make_policy("lru", [3])) == 5


def test_what_is_needed_at_once_is_held_at_once() -> None:
    # Two slots: 1 cannot stay while 2 comes, for 0 is needed beside it.
    wanted = [demand(0, 0, 1), demand(0, 0, 2), demand(0, 1)]
    assert belady_misses(wanted, 2) == 4
    assert belady_misses(wanted, 3) == 3


def test_a_demand_larger_than_the_slots_leaves_what_is_used_again_soonest() -> None:
    wanted = [demand(0, 0, 1, 2), demand(0, 1), demand(0, 2)]
    assert belady_misses(wanted, 2) == 3
    assert belady_misses(wanted, 1) == 4
