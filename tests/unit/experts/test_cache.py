from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pgmoe.experts.cache import ExpertCache, SlotState
from pgmoe.experts.policies import POLICIES, make_policy
from pgmoe.layout import ExpertId

EXPERTS_PER_LAYER = (4, 4)
EXPERTS = [ExpertId(layer, expert) for layer in range(2) for expert in range(4)]
experts = st.sampled_from(EXPERTS)


class CacheAgainstPlainBooks(RuleBasedStateMachine):
    """Everything a lease may do, in any order, beside dictionaries that say what must come of it."""

    name = ""

    @initialize(num_slots=st.integers(1, 5))
    def start(self, num_slots: int) -> None:
        self.cache = ExpertCache(num_slots, make_policy(self.name, EXPERTS_PER_LAYER))
        self.slots: dict[ExpertId, int] = {}
        self.in_flight: set[ExpertId] = set()
        self.pins: Counter[ExpertId] = Counter()

    @rule(expert=experts)
    def begin(self, expert: ExpertId) -> None:
        if expert in self.slots:
            return
        evictable = set(self.slots) - self.in_flight - set(+self.pins)
        full = len(self.slots) == self.cache.num_slots
        reserved = self.cache.begin(expert)
        if full and not evictable:
            assert reserved is None
            return
        assert reserved is not None
        slot, evicted = reserved
        assert (evicted is not None) == full
        if evicted is not None:
            assert evicted in evictable
            assert slot == self.slots.pop(evicted)
        assert slot not in self.slots.values()
        self.slots[expert] = slot
        self.in_flight.add(expert)

    @rule(expert=experts, arrived=st.booleans())
    def end(self, expert: ExpertId, arrived: bool) -> None:
        if expert not in self.in_flight:
            return
        self.in_flight.remove(expert)
        if arrived:
            self.cache.finish(expert)
        else:
            self.cache.abandon(expert)
            del self.slots[expert]

    @rule(expert=experts)
    def pin(self, expert: ExpertId) -> None:
        if expert in self.slots and expert not in self.in_flight:
            self.cache.pin(expert)
            self.pins[expert] += 1

    @rule(expert=experts)
    def unpin(self, expert: ExpertId) -> None:
        if self.pins[expert]:
            self.cache.unpin(expert)
            self.pins[expert] -= 1

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert len(self.cache) == len(self.slots) - len(self.in_flight)
        for expert in EXPERTS:
            state = SlotState.IN_FLIGHT if expert in self.in_flight else SlotState.READY
            assert self.cache.state(expert) is (state if expert in self.slots else SlotState.MISSING)
            if expert in self.slots:
                assert self.cache.slot_of(expert) == self.slots[expert]


@pytest.mark.parametrize("name", POLICIES)
def test_the_cache_never_loses_a_slot_nor_evicts_what_is_in_use(name: str) -> None:
    machine = type("Machine", (CacheAgainstPlainBooks,), {"name": name})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=80, stateful_step_count=40, deadline=None)
    )


def test_a_pin_counts_as_a_use() -> None:
    cache = ExpertCache(2, make_policy("lru", EXPERTS_PER_LAYER))
    for expert in EXPERTS[:2]:
        cache.begin(expert)
        cache.finish(expert)
    cache.pin(EXPERTS[0])
    cache.unpin(EXPERTS[0])
    assert cache.begin(EXPERTS[2]) == (1, EXPERTS[1])


def test_an_expert_may_be_pinned_more_than_once() -> None:
    cache = ExpertCache(1, make_policy("lru", EXPERTS_PER_LAYER))
    cache.begin(EXPERTS[0])
    cache.finish(EXPERTS[0])
    cache.pin(EXPERTS[0])
    cache.pin(EXPERTS[0])
    cache.unpin(EXPERTS[0])
    assert cache.begin(EXPERTS[1]) is None
    cache.unpin(EXPERTS[0])
    assert cache.begin(EXPERTS[1]) == (0, EXPERTS[0])
