"""What every eviction policy owes the cache, and what each adds to it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgmoe.errors import ConfigError
from pgmoe.experts.policies import POLICIES, make_policy
from pgmoe.layout import ExpertId

EXPERTS = [ExpertId(layer, expert) for layer in range(2) for expert in range(4)]
every_policy = pytest.mark.parametrize("name", POLICIES)


class PolicyContract(RuleBasedStateMachine):
    """Any use that the protocol allows; a plain set knows who holds a slot."""

    name = ""

    def __init__(self) -> None:
        super().__init__()
        self.policy = make_policy(self.name)
        self.known: set[ExpertId] = set()

    @rule(expert=st.sampled_from(EXPERTS))
    def insert_or_touch(self, expert: ExpertId) -> None:
        if expert in self.known:
            self.policy.touch(expert)
        else:
            self.policy.insert(expert)
            self.known.add(expert)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        expert = data.draw(st.sampled_from(sorted(self.known)))
        self.policy.remove(expert)
        self.known.remove(expert)

    @rule(protected=st.sets(st.sampled_from(EXPERTS)))
    def victim_is_known_and_not_protected(self, protected: set[ExpertId]) -> None:
        victim = self.policy.victim(protected)
        assert (victim is None) == (self.known <= protected)
        assert victim is None or victim in self.known - protected
        assert self.policy.victim(protected) == victim  # asking changes nothing

    @invariant()
    def an_empty_policy_has_no_victim(self) -> None:
        if not self.known:
            assert self.policy.victim(()) is None


@every_policy
def test_a_policy_keeps_the_contract(name: str) -> None:
    machine = type("Machine", (PolicyContract,), {"name": name})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


@every_policy
def test_all_experts_go_one_by_one(name: str) -> None:
    policy = make_policy(name)
    for expert in EXPERTS:
        policy.insert(expert)
    gone = []
    while (victim := policy.victim(())) is not None:
        policy.remove(victim)
        gone.append(victim)
    assert sorted(gone) == EXPERTS


def test_lru_evicts_who_was_used_longest_ago() -> None:
    policy = make_policy("lru")
    for expert in EXPERTS[:4]:
        policy.insert(expert)
    policy.touch(EXPERTS[0])
    policy.touch(EXPERTS[2])
    assert policy.victim(()) == EXPERTS[1]
    assert policy.victim({EXPERTS[1], EXPERTS[3]}) == EXPERTS[0]
    policy.remove(EXPERTS[1])
    policy.insert(EXPERTS[1])
    assert policy.victim(()) == EXPERTS[3]


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"policy 'mru' is unknown; choose one of .*\blru\b"):
        make_policy("mru")
