"""What every eviction policy owes the cache, and what each adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgmoe.errors import ConfigError
from pgmoe.experts.policies import POLICIES, check_policy, make_policy
from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.layout import ExpertId

EXPERTS_PER_LAYER = (4, 2, 5)  # layers need not be of one size
EXPERTS = [
    ExpertId(layer, expert) for layer, count in enumerate(EXPERTS_PER_LAYER) for expert in range(count)
]
every_policy = pytest.mark.parametrize("name", POLICIES)


def make(name: str) -> EvictionPolicy:
    return make_policy(name, EXPERTS_PER_LAYER)


class PolicyContract(RuleBasedStateMachine):
    """Any use that the protocol allows; a plain set knows who holds a slot.

    A twin is told the same and asked nothing until the end: asking must make no difference.
    """

    name = ""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.twin = make(self.name), make(self.name)
        self.known: set[ExpertId] = set()

    @rule(expert=st.sampled_from(EXPERTS))
    def insert_or_touch(self, expert: ExpertId) -> None:
        for policy in (self.policy, self.twin):
            if expert in self.known:
                policy.touch(expert)
            else:
                policy.insert(expert)
        self.known.add(expert)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        expert = data.draw(st.sampled_from(sorted(self.known)))
        self.policy.remove(expert)
        self.twin.remove(expert)
        self.known.remove(expert)

    @rule(protected=st.sets(st.sampled_from(EXPERTS)))
    def victim_is_known_and_not_protected(self, protected: set[ExpertId]) -> None:
        victim = self.policy.victim(protected)
        assert (victim is None) == (self.known <= protected)
        assert victim is None or victim in self.known - protected
        assert self.policy.victim(protected) == victim

    @invariant()
    def an_empty_policy_has_no_victim(self) -> None:
        if not self.known:
            assert self.policy.victim(()) is None

    def teardown(self) -> None:
        assert list(all_victims(self.policy)) == list(all_victims(self.twin))


def all_victims(policy: EvictionPolicy) -> Iterator[ExpertId]:
    """Evict one after another until none is left."""
    while (victim := policy.victim(())) is not None:
        policy.remove(victim)
        yield victim


@every_policy
def test_a_policy_keeps_the_contract(name: str) -> None:
    machine = type("Machine", (PolicyContract,), {"name": name})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


@every_policy
def test_all_experts_go_one_by_one(name: str) -> None:
    policy = make(name)
    for expert in EXPERTS:
        policy.insert(expert)
    assert sorted(all_victims(policy)) == EXPERTS


@every_policy
def test_a_victim_is_an_expert_id(name: str) -> None:
    policy = make(name)
    policy.insert(EXPERTS[-1])
    victim = policy.victim(())
    assert isinstance(victim, ExpertId)
    assert (type(victim.layer), type(victim.expert)) == (int, int)


def test_lru_evicts_who_was_used_longest_ago() -> None:
    policy = make("lru")
    for expert in EXPERTS[:4]:
        policy.insert(expert)
    policy.touch(EXPERTS[0])
    policy.touch(EXPERTS[2])
    assert policy.victim(()) == EXPERTS[1]
    assert policy.victim({EXPERTS[1], EXPERTS[3]}) == EXPERTS[0]
    policy.remove(EXPERTS[1])
    policy.insert(EXPERTS[1])
    assert policy.victim(()) == EXPERTS[3]


def test_lfu_evicts_who_was_used_least_since_it_came() -> None:
    policy = make("lfu")
    for expert, uses in zip(EXPERTS, (2, 1, 1, 3), strict=False):
        policy.insert(expert)
        for _ in range(uses):
            policy.touch(expert)
    assert policy.victim(()) == EXPERTS[1]
    policy.touch(EXPERTS[1])
    assert list(all_victims(policy)) == [EXPERTS[i] for i in (2, 0, 1, 3)]
    policy.insert(EXPERTS[3])
    policy.insert(EXPERTS[2])
    policy.touch(EXPERTS[2])
    assert policy.victim(()) == EXPERTS[3]  # its three uses went with its slot


def test_lifo_evicts_who_came_last_however_much_it_is_used() -> None:
    policy = make("lifo")
    for expert in EXPERTS[:3]:
        policy.insert(expert)
    policy.touch(EXPERTS[2])
    assert policy.victim(()) == EXPERTS[2]
    assert policy.victim({EXPERTS[2]}) == EXPERTS[1]


@every_policy
def test_a_policy_is_known_to_the_check(name: str) -> None:
    check_policy(name)


@pytest.mark.parametrize("refuse", [check_policy, make])
def test_an_unknown_policy_is_refused_with_the_known_ones(refuse: object) -> None:
    with pytest.raises(ConfigError, match=r"policy 'mru' is unknown; choose one of lfu, lifo, lru, prospect"):
        refuse("mru")  # type: ignore[operator]


# --- prospect, against its formula written out


class PlainProspect:
    """Chance / wait, by loops over plain dictionaries."""

    def __init__(self, experts_per_layer: Sequence[int]) -> None:
        self.num_layers = len(experts_per_layer)
        self.turns: list[list[set[ExpertId]]] = [[] for _ in experts_per_layer]
        self.resident: set[ExpertId] = set()
        self.guesses: dict[ExpertId, int] = {}  # turns of its layer when it came
        self.layer = -1

    def touch(self, expert: ExpertId) -> None:
        if expert.layer != self.layer or expert in self.turns[self.layer][-1]:
            while True:
                self.layer = (self.layer + 1) % self.num_layers
                self.turns[self.layer].append(set())
                if self.layer == expert.layer:
                    break
        self.turns[expert.layer][-1].add(expert)
        self.guesses.pop(expert, None)

    def insert(self, expert: ExpertId) -> None:
        self.resident.add(expert)
        self.guesses[expert] = len(self.turns[expert.layer])

    def remove(self, expert: ExpertId) -> None:
        self.resident.remove(expert)
        self.guesses.pop(expert, None)

    def prospect(self, expert: ExpertId) -> float:
        turns = self.turns[expert.layer]
        ago = [len(turns) - 1 - turn for turn, used in enumerate(turns) if expert in used]
        long = sum(0.02 * 0.98**turn for turn in ago)
        short = sum(0.3 * 0.7**turn for turn in ago)
        chance = 0.2 * short + 0.8 * long
        if self.guesses.get(expert) == len(turns):
            chance = max(chance, 0.5)
        ahead = (expert.layer - self.layer) % self.num_layers
        return chance / (ahead or self.num_layers)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(EXPERTS), st.sampled_from(["touch", "remove"])), max_size=60),
    st.data(),
)
def test_prospect_evicts_the_least_chance_over_wait(
    told: list[tuple[ExpertId, str]], data: st.DataObject
) -> None:
    policy, plain = make("prospect"), PlainProspect(EXPERTS_PER_LAYER)
    for expert, kind in told:
        event = kind if expert in plain.resident else "insert"
        getattr(policy, event)(expert)
        getattr(plain, event)(expert)
    protected = data.draw(st.sets(st.sampled_from(EXPERTS)))
    candidates = {expert: plain.prospect(expert) for expert in plain.resident - protected}
    victim = policy.victim(protected)
    if not candidates:
        assert victim is None
    else:
        assert victim is not None
        assert candidates[victim] == pytest.approx(min(candidates.values()), rel=1e-9, abs=1e-12)


def used(policy: EvictionPolicy, *experts: ExpertId) -> None:
    for expert in experts:
        policy.touch(expert)


def test_prospect_keeps_what_comes_next() -> None:
    policy = make("prospect")
    a, b, c = ExpertId(0, 0), ExpertId(1, 0), ExpertId(2, 0)
    for expert in (a, b, c):
        policy.insert(expert)
    used(policy, a, b, c)
    assert list(all_victims(policy)) == [c, b, a]  # a's layer is the next, c's a whole pass away


def test_prospect_remembers_what_was_evicted() -> None:
    policy = make("prospect")
    often, once, other = ExpertId(0, 0), ExpertId(0, 1), ExpertId(1, 0)
    policy.insert(often)
    policy.insert(other)
    for _ in range(5):
        used(policy, often, other)
    policy.remove(often)
    for expert in (once, often):
        policy.insert(expert)
    used(policy, once, often, other)
    assert policy.victim({other}) == once


def test_prospect_forgets_what_is_no_longer_used() -> None:
    policy = make("prospect")
    old, new, other = ExpertId(0, 0), ExpertId(0, 1), ExpertId(1, 0)
    for expert in (old, new, other):
        policy.insert(expert)
    for expert in (old, new):
        for _ in range(40):
            used(policy, expert, other)
    assert policy.victim({other}) == old


def test_prospect_gives_a_guess_until_its_layers_turn() -> None:
    policy = make("prospect")
    seldom, guess, other = ExpertId(1, 0), ExpertId(1, 1), ExpertId(0, 0)
    for expert in (seldom, other):
        policy.insert(expert)
    used(policy, seldom, other)
    policy.insert(guess)
    assert policy.victim({other}) == seldom
    used(policy, seldom)
    assert policy.victim({other}) == guess
