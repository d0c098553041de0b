from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgmoe.engine.scheduler import Scheduler
from pgmoe.errors import EngineOverloaded


def scheduler_with(*request_ids: str, max_running: int = 3, max_waiting: int = 8) -> Scheduler:
    scheduler = Scheduler(max_running, max_waiting)
    for request_id in request_ids:
        scheduler.add(request_id)
    return scheduler


def turns(scheduler: Scheduler, num_steps: int) -> str:
    return "".join(r for _ in range(num_steps) for r in scheduler.schedule().request_ids)


def test_nothing_is_scheduled_where_nobody_asks() -> None:
    assert Scheduler(1, 0).schedule().request_ids == ()


def test_running_requests_take_turns_and_others_wait() -> None:
    scheduler = scheduler_with("a", "b", "c", "d")
    assert turns(scheduler, 7) == "abcabca"
    assert (scheduler.num_running, scheduler.num_waiting) == (3, 1)


def test_a_free_place_goes_to_the_one_that_waited_longest() -> None:
    scheduler = scheduler_with("a", "b", "c", "d", max_running=1)
    seen = ""
    for _ in range(4):
        seen += turns(scheduler, 2)
        scheduler.remove(seen[-1])
    assert seen == "aabbccdd"


def test_a_newcomer_joins_at_the_end_of_the_round() -> None:
    scheduler = scheduler_with("a", "b")
    assert turns(scheduler, 1) == "a"
    scheduler.add("c")
    assert turns(scheduler, 5) == "bacba"


def test_a_stream_of_one_step_requests_does_not_hold_up_a_long_one() -> None:
    scheduler = scheduler_with("L", max_running=2)
    seen = turns(scheduler, 1)
    for _ in range(10):
        scheduler.add("s")
        seen += turns(scheduler, 1)
        if seen[-1] == "s":
            scheduler.remove("s")
    assert seen.count("L") >= 5


@pytest.mark.parametrize("max_waiting", [0, 2])
def test_one_request_more_than_places_and_queue_is_refused_and_changes_nothing(max_waiting: int) -> None:
    scheduler = scheduler_with(*"abcd"[: 2 + max_waiting], max_running=2, max_waiting=max_waiting)
    scheduler.schedule()
    before = (scheduler.num_running, scheduler.num_waiting)
    with pytest.raises(EngineOverloaded, match=rf"the limit is {2 + max_waiting}") as caught:
        scheduler.add("x")
    assert caught.value.retry_after_s > 0
    assert (scheduler.num_running, scheduler.num_waiting) == before == (2, max_waiting)
    scheduler.remove("a")
    scheduler.add("x")
    assert scheduler.num_running + scheduler.num_waiting == 2 + max_waiting


def test_a_request_may_be_removed_while_it_waits_or_runs() -> None:
    scheduler = scheduler_with("a", "b", "c", "d", max_running=2)
    assert turns(scheduler, 1) == "a"
    scheduler.remove("c")  # waits
    scheduler.remove("b")  # runs, and would be next
    assert turns(scheduler, 4) == "adad"
    scheduler.remove("a")
    scheduler.remove("d")
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_who_does_not_fit_now_waits_and_those_behind_wait_with_it() -> None:
    scheduler = Scheduler(4, 8, kv_capacity=10)
    for name, kv_bytes in {"a": 6, "b": 5, "c": 1}.items():
        scheduler.add(name, kv_bytes)
    assert turns(scheduler, 3) == "aaa"
    assert (scheduler.reserved_bytes, scheduler.num_running, scheduler.num_waiting) == (6, 1, 2)
    scheduler.remove("a")
    assert turns(scheduler, 4) == "bcbc"
    assert scheduler.reserved_bytes == 6
    scheduler.remove("c")
    scheduler.remove("b")
    assert scheduler.reserved_bytes == 0


def test_a_waiting_request_that_leaves_lets_the_next_in() -> None:
    scheduler = Scheduler(4, 8, kv_capacity=10)
    for name, kv_bytes in {"a": 6, "b": 5, "c": 4}.items():
        scheduler.add(name, kv_bytes)
    assert turns(scheduler, 2) == "aa"
    scheduler.remove("b")
    assert turns(scheduler, 3) == "aca"


CAPACITY = 12


class AnyLife(RuleBasedStateMachine):
    """Requests come, take steps and go in any order; `waited` counts each one's steps without a turn."""

    @initialize(max_running=st.integers(1, 4), max_waiting=st.integers(0, 4))
    def begin(self, max_running: int, max_waiting: int) -> None:
        self.max_running, self.max_waiting = max_running, max_waiting
        self.scheduler = Scheduler(max_running, max_waiting, CAPACITY)
        self.kv_bytes: dict[str, int] = {}  # of all present
        self.arrived: list[str] = []  # without a turn so far, in order of arrival
        self.waited: dict[str, int] = {}  # of those that had a turn
        self.names = map(str, itertools.count())

    @rule(kv_bytes=st.integers(0, CAPACITY))
    def add(self, kv_bytes: int) -> None:
        name = next(self.names)
        try:
            self.scheduler.add(name, kv_bytes)
        except EngineOverloaded:
            assert len(self.arrived) + len(self.waited) == self.max_running + self.max_waiting
        else:
            self.arrived.append(name)
            self.kv_bytes[name] = kv_bytes

    @rule()
    def step(self) -> None:
        scheduled = self.scheduler.schedule().request_ids
        assert len(scheduled) == min(1, len(self.arrived) + len(self.waited))
        for name in scheduled:
            if name not in self.waited:
                assert name == self.arrived.pop(0), "first come, first served"
        self.waited = {name: steps + 1 for name, steps in self.waited.items()} | dict.fromkeys(scheduled, 0)

    @precondition(lambda self: self.arrived or self.waited)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.arrived, *self.waited]))
        self.scheduler.remove(name)
        del self.kv_bytes[name]
        if self.waited.pop(name, None) is None:
            self.arrived.remove(name)

    @invariant()
    def nobody_starves(self) -> None:
        assert all(steps < self.max_running for steps in self.waited.values()), self.waited

    @invariant()
    def bytes_are_those_of_who_runs_and_never_above_capacity(self) -> None:
        running = [*self.waited, *self.arrived[: self.scheduler.num_running - len(self.waited)]]
        assert self.scheduler.reserved_bytes == sum(self.kv_bytes[name] for name in running) <= CAPACITY

    @invariant()
    def counts_are_those_of_the_requests_present(self) -> None:
        assert self.scheduler.num_running <= self.max_running
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.arrived) + len(self.waited)
        assert self.scheduler.num_running >= len(self.waited)


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, CAPACITY), min_size=1, max_size=12), st.integers(1, 5))
def test_every_request_gets_its_turns_until_all_are_done_whatever_it_takes(
    sizes: list[int], max_running: int
) -> None:
    scheduler = Scheduler(max_running, len(sizes), CAPACITY)
    left = dict.fromkeys(map(str, range(len(sizes))), 3)
    for name, size in zip(left, sizes, strict=True):
        scheduler.add(name, size)
    for _ in range(3 * len(sizes)):
        (name,) = scheduler.schedule().request_ids
        left[name] -= 1
        if not left[name]:
            scheduler.remove(name)
    assert not any(left.values())
    assert scheduler.reserved_bytes == 0


@given(num_requests=st.integers(1, 12), max_running=st.integers(1, 5))
def test_every_request_gets_its_turns_until_all_are_done(num_requests: int, max_running: int) -> None:
    scheduler = scheduler_with(
        *map(chr, range(97, 97 + num_requests)), max_running=max_running, max_waiting=12
    )
    left = dict.fromkeys(map(chr, range(97, 97 + num_requests)), 3)
    for _ in range(3 * num_requests):
        (name,) = scheduler.schedule().request_ids
        left[name] -= 1
        if not left[name]:
            scheduler.remove(name)
    assert not any(left.values())
