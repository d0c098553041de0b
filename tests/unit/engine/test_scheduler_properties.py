"""Any sequences, in any order, whatever fails: each finds its own keys and values, and comes to its end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgmoe.engine.schedule import NewSequence, SchedulerLimits
from pgmoe.engine.scheduler import Prefer
from pgmoe.errors import EngineOverloaded
from tests.support.scheduled_lives import NEVER, ScheduledLives

PREFIXES = [(0,) * 400, (0, 1) * 200, (1,) * 400]
"""Prompts begin like one of these."""

SWAP_PAYS: list[Callable[[int], bool]] = [
    lambda num_tokens: False,
    lambda num_tokens: True,
    lambda num_tokens: num_tokens > 6,
]

PREFER: list[Prefer | None] = [
    None,
    lambda waiting, _: None,
    lambda waiting, _: list(waiting)[-1],
    lambda waiting, _: max(waiting, key=lambda name: (len(name), name[::-1])),
]

LIMITS = st.builds(
    SchedulerLimits,
    max_running=st.integers(3, 6),
    max_waiting=st.integers(0, 9),
    num_blocks=st.integers(4, 24),
    block_tokens=st.sampled_from([1, 2, 4, 16]),
    max_passed_over=st.sampled_from([0, 1, 3, NEVER]),
    num_host_blocks=st.sampled_from([0, 3, 10, 60]),
    prefix_cache=st.sampled_from([True, True, False]),
)

SHAPES = st.fixed_dictionaries(
    {
        "num_branches": st.integers(1, 3),
        "priority": st.integers(-1, 1),
        "num_context_tokens": st.sampled_from([0, 0, 0, 0, 1, 5]),
        "num_fixed_blocks": st.sampled_from([0, 0, 0, 0, 1]),
        "shares_prefix": st.sampled_from([True, True, True, False]),
        "in_one_step": st.sampled_from([False, False, False, True]),
        "max_chunk": st.sampled_from([None, None, 1, 3]),
    }
).filter(lambda shape: not (shape["in_one_step"] and shape["max_chunk"]))


@dataclass(frozen=True)
class Wish:
    """A sequence, as far as the memory goes."""

    shape: dict[str, Any]
    prefix: int
    fullness: float
    """How much of the memory the beginning of its prompt takes."""
    own: list[int]
    num_answer_tokens: int


WISHES = st.builds(
    Wish,
    shape=SHAPES,
    prefix=st.integers(0, len(PREFIXES) - 1),
    fullness=st.sampled_from([0, 0.1, 0.2, 0.3, 0.5, 0.8, 1]),
    own=st.lists(st.integers(0, 1), max_size=8),
    num_answer_tokens=st.integers(1, 40),
)


class AnyLives(RuleBasedStateMachine):
    """Sequences come, are computed, fail, fork, give way, are given up; in the end, all that are left end."""

    @initialize(limits=LIMITS, swap_pays=st.sampled_from(SWAP_PAYS), prefer=st.sampled_from(PREFER))
    def begin(self, limits: SchedulerLimits, swap_pays: Any, prefer: Any) -> None:
        self.lives = ScheduledLives(limits, swap_pays=swap_pays, prefer=prefer)
        self.names = map(str, itertools.count())

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=4))
    def add(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            num_fixed = wish.shape["num_fixed_blocks"] * wish.shape["num_branches"]
            capacity = self.lives.capacity(wish.shape["num_context_tokens"], num_fixed)
            if capacity > 0:
                self._add(wish, capacity)

    def _add(self, wish: Wish, capacity: int) -> None:
        beginning = PREFIXES[wish.prefix][: int(capacity * wish.fullness)]
        token_ids = (*beginning, *wish.own, 0)[-capacity:]
        new = NewSequence(sequence_id=next(self.names), token_ids=token_ids, **wish.shape)
        num_places = sum(life.places for life in self.lives.lives.values()) + new.num_branches
        limit = self.lives.limits.max_running + self.lives.limits.max_waiting
        try:
            self.lives.add(new, min(capacity, len(token_ids) + wish.num_answer_tokens))
        except EngineOverloaded:
            assert num_places > limit
        else:
            assert num_places <= limit

    @precondition(lambda self: self.lives.lives)
    @rule(
        num_steps=st.integers(1, 12),
        max_prompt_tokens=st.sampled_from([1, 3, 20, 500]),
        fails=st.sets(st.integers(0, 5), max_size=2),
        num_forks=st.integers(0, 2),
    )
    def steps(self, num_steps: int, max_prompt_tokens: int, fails: set[int], num_forks: int) -> None:
        for i in range(num_steps):
            self.lives.step(max_prompt_tokens, fails if i == 0 else (), num_forks)
            self.lives.check()

    @precondition(lambda self: self.lives.lives)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.lives.finish(data.draw(st.sampled_from(sorted(self.lives.lives))))

    @rule()
    def forget_prefixes(self) -> None:
        self.lives.scheduler.forget_prefixes()

    @invariant()
    def all_is_accounted_for(self) -> None:
        self.lives.check()

    def teardown(self) -> None:
        if hasattr(self, "lives") and not self.lives.in_step:
            run_to_the_end(self.lives, 7)


def run_to_the_end(lives: ScheduledLives, max_prompt_tokens: int) -> None:
    for _ in range(20_000):
        if not lives.lives:
            break
        lives.step(max_prompt_tokens)
    assert not lives.lives, "they hinder each other for ever"
    lives.check()
    assert lives.scheduler.num_free_blocks == lives.limits.num_blocks


TestAnyLives = AnyLives.TestCase
TestAnyLives.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=10),
    priorities=st.lists(st.integers(0, 2), min_size=10, max_size=10),
    num_branches=st.lists(st.integers(1, 3), min_size=10, max_size=10),
    num_spare_blocks=st.integers(0, 6),
    num_host_blocks=st.sampled_from([0, 5, 100]),
    max_prompt_tokens=st.sampled_from([1, 10, 200]),
    prefer=st.sampled_from(PREFER),
)
@settings(max_examples=100, deadline=None)
def test_all_come_to_their_end_however_few_blocks_there_are(
    lengths: list[tuple[int, int]],
    priorities: list[int],
    num_branches: list[int],
    num_spare_blocks: int,
    num_host_blocks: int,
    max_prompt_tokens: int,
    prefer: Any,
) -> None:
    limits = SchedulerLimits(
        max_running=8,
        max_waiting=30,
        num_blocks=-(-max(map(sum, lengths)) // 4) + num_spare_blocks,
        block_tokens=4,
        num_host_blocks=num_host_blocks,
    )
    lives = ScheduledLives(limits, swap_pays=lambda num_tokens: num_tokens > 8, prefer=prefer)
    for i, (num_prompt_tokens, num_answer_tokens) in enumerate(lengths):
        new = NewSequence(
            sequence_id=str(i),
            token_ids=(i,) * num_prompt_tokens,
            priority=priorities[i],
            num_branches=num_branches[i],
        )
        lives.add(new, num_prompt_tokens + num_answer_tokens)
    run_to_the_end(lives, max_prompt_tokens)
