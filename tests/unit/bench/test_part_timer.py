from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.bench.part_timer import PartTimer, call_cost_s

PARTS = ("outside", "a", "b", "c")


@dataclass(frozen=True)
class Call:
    """A call of one part: so long before each inner call, and so long at the end; then it may fail."""

    part: str
    inner: tuple[tuple[int, Call], ...]
    last: int
    fails: bool = False


DURATIONS = st.integers(0, 1000)
CALLS = st.recursive(
    st.builds(Call, st.sampled_from(PARTS), st.just(()), DURATIONS, st.booleans()),
    lambda calls: st.builds(
        Call,
        st.sampled_from(PARTS),
        st.lists(st.tuples(DURATIONS, calls), max_size=4).map(tuple),
        DURATIONS,
        st.booleans(),
    ),
    max_leaves=25,
)
PROGRAMS = st.lists(st.tuples(DURATIONS, CALLS), max_size=4).map(tuple)


class Failure(Exception):
    pass


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(timer: PartTimer, clock: Clock, call: Call) -> None:
    def body() -> None:
        for before, inner in call.inner:
            clock.now += before
            _run(timer, clock, inner)
        clock.now += call.last
        if call.fails:
            raise Failure

    try:
        timer.around(call.part, body)()
    except Failure:
        assert call.fails


def _own_time(call: Call, seconds: dict[str, float]) -> None:
    """What the timer should find, by plain recursion."""
    seconds[call.part] += call.last + sum(before for before, _ in call.inner)
    for _, inner in call.inner:
        _own_time(inner, seconds)


@given(program=PROGRAMS, warm_up=PROGRAMS, last=DURATIONS)
def test_each_part_has_its_own_time_without_what_is_nested(
    program: tuple[tuple[int, Call], ...], warm_up: tuple[tuple[int, Call], ...], last: int
) -> None:
    clock = Clock()
    timer = PartTimer(PARTS, clock)
    for before, call in warm_up:
        clock.now += before
        _run(timer, clock, call)
    timer.restart()
    began = clock.now
    expected = dict.fromkeys(PARTS, 0.0)
    for before, call in program:
        clock.now += before
        _run(timer, clock, call)
        expected["outside"] += before
        _own_time(call, expected)
    clock.now += last
    expected["outside"] += last
    assert timer.read() == timer.read() == expected
    assert sum(expected.values()) == clock.now - began


def test_a_timed_function_takes_and_gives_what_the_plain_one_does() -> None:
    timer = PartTimer(PARTS)
    assert timer.around("a", divmod)(7, 4) == (1, 3)
    with pytest.raises(ZeroDivisionError):
        timer.around("a", divmod)(7, 0)
    assert timer.num_calls == 2


def test_a_timed_call_costs_a_few_microseconds_at_most() -> None:
    assert 0 < call_cost_s() < 2e-5
