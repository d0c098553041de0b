from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.experts.limiter import LimiterRules, OutcomeWindow, PrefetchLimiter

MIB = 2**20
RULES = LimiterRules()
EVIDENCE = RULES.window_outcomes // 2
"""Outcomes after which a window that was empty is judged."""

sizes = st.integers(1, 400 * MIB)


def limiter(rules: LimiterRules = RULES) -> PrefetchLimiter:
    found = PrefetchLimiter(2e9, rules)
    found.observe_layer(0.004, 0.001)
    return found


def feed(book: Callable[[int], None], num_outcomes: int, num_bytes: int = 3 * MIB) -> None:
    for _ in range(num_outcomes):
        book(num_bytes)


def shadows(target: PrefetchLimiter, num_outcomes: int, useful: bool, num_bytes: int = 3 * MIB) -> None:
    feed(lambda n: target.shadow(n, useful), num_outcomes, num_bytes)


@given(
    st.floats(1e6, 1e11),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=50),
    st.integers(0, 2**40),
    st.integers(1, 3),
)
def test_guesses_get_what_the_link_carries_in_the_compute_window_and_no_more(
    bandwidth: float, layers: list[tuple[float, float]], in_flight: int, distance: int
) -> None:
    found = PrefetchLimiter(bandwidth)
    for seconds, stall_s in layers:
        found.observe_layer(seconds, stall_s)
    windows = [max(0.0, seconds - stall_s) for seconds, stall_s in layers][-RULES.num_windows :]
    budget = int(bandwidth * median(windows)) if windows else 0
    allowed = found.allowance(in_flight, distance)
    assert allowed == max(0, budget * distance - in_flight)
    assert found.allowance(in_flight, distance) == allowed  # asking changes nothing


def test_nothing_is_guessed_before_a_window_was_measured() -> None:
    assert PrefetchLimiter(1e9).on
    assert PrefetchLimiter(1e9).allowance(0) == 0


def test_a_long_prompt_does_not_widen_the_window_of_single_tokens() -> None:
    found = PrefetchLimiter(1e9)
    for _ in range(20):
        found.observe_layer(0.003, 0.001)
    for _ in range(8):
        found.observe_layer(0.5, 0.0)
    assert found.window_s == pytest.approx(0.002)


@given(st.lists(st.booleans(), max_size=3 * RULES.window_outcomes), sizes)
def test_only_wasted_guesses_switch_off_within_a_window_whatever_came_before(
    before: list[bool], num_bytes: int
) -> None:
    found = limiter()
    for useful in before:
        (found.useful if useful else found.wasted)(num_bytes)
    feed(found.wasted, RULES.window_outcomes, num_bytes)
    assert not found.on
    assert found.allowance(0) == 0


@given(sizes, st.lists(st.booleans(), max_size=EVIDENCE - 1))
def test_right_shadows_switch_on_within_two_windows_whatever_came_before(
    num_bytes: int, before: list[bool]
) -> None:
    found = limiter()
    feed(found.wasted, EVIDENCE, num_bytes)
    assert not found.on
    for useful in before:
        found.shadow(num_bytes, useful)
    shadows(found, RULES.window_outcomes, True, num_bytes)
    assert found.on
    assert found.num_switches == 2
    assert found.allowance(0) == 6_000_000


def test_evidence_is_gathered_anew_after_each_switch() -> None:
    found = limiter()
    feed(found.wasted, EVIDENCE - 1)
    assert found.on
    found.wasted(1)
    assert not found.on
    shadows(found, EVIDENCE - 1, True)
    assert not found.on
    found.shadow(1, True)
    assert found.on
    feed(found.wasted, EVIDENCE - 1)
    assert found.on
    found.wasted(1)
    assert not found.on


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_guesses_that_are_right_half_of_the_time_do_not_flap(share: float) -> None:
    found = limiter()
    draw = random.Random(0)
    for _ in range(20_000):
        useful = draw.random() < share
        if found.on:
            (found.useful if useful else found.wasted)(MIB)
        else:
            found.shadow(MIB, useful)
    assert found.num_switches == 1


def test_alternating_outcomes_never_switch() -> None:
    found = limiter()
    for _ in range(1000):
        found.useful(MIB)
        found.wasted(MIB)
    assert found.on
    assert found.num_switches == 0


def test_guesses_right_seven_times_in_ten_stay_on() -> None:
    found = limiter()
    draw = random.Random(1)
    for _ in range(20_000):
        (found.useful if draw.random() < 0.7 else found.wasted)(MIB)
    assert found.num_switches == 0


def test_late_guesses_judge_nothing() -> None:
    found = limiter()
    feed(found.late, 1000)
    feed(found.wasted, EVIDENCE - 1)
    assert found.on
    feed(found.late, 1000)
    found.wasted(MIB)
    assert not found.on
    assert found.late_bytes == 2000 * 3 * MIB


def test_large_experts_weigh_more_than_small_ones() -> None:
    found = limiter()
    for _ in range(EVIDENCE):
        found.useful(MIB)
        found.wasted(2 * MIB)
    assert not found.on


def test_outcomes_of_guesses_under_way_at_the_switch_are_counted_but_do_not_judge() -> None:
    found = limiter()
    feed(found.wasted, EVIDENCE + 5)
    feed(found.useful, 1000)
    assert not found.on
    assert found.wasted_bytes == (EVIDENCE + 5) * 3 * MIB
    assert found.useful_bytes == 1000 * 3 * MIB
    shadows(found, EVIDENCE + 5, True)
    assert found.on
    assert found.shadow_useful_bytes == EVIDENCE * 3 * MIB
    shadows(found, 1000, False)
    assert found.on
    assert found.shadow_wasted_bytes == 0


def test_every_nth_layer_is_sampled_while_off_and_none_while_on() -> None:
    found = limiter()
    assert not any(found.sample() for _ in range(100))
    feed(found.wasted, EVIDENCE)
    sampled = [found.sample() for _ in range(3 * RULES.shadow_every)]
    assert sampled == ([False] * (RULES.shadow_every - 1) + [True]) * 3


@given(st.lists(st.tuples(st.sampled_from("uwlsSo"), st.integers(0, 9)), max_size=300), st.integers(1, 12))
def test_the_same_events_give_the_same_answers(events: list[tuple[str, int]], size: int) -> None:
    def play() -> list[tuple[bool, int, int, bool]]:
        found = PrefetchLimiter(10.0, LimiterRules(window_outcomes=size))
        answers = []
        for kind, amount in events:
            match kind:
                case "u":
                    found.useful(amount)
                case "w":
                    found.wasted(amount)
                case "l":
                    found.late(amount)
                case "o":
                    found.observe_layer(amount, 0.5)
                case _:
                    found.shadow(amount, kind == "S")
            answers.append((found.on, found.num_switches, found.allowance(amount), found.sample()))
        return answers

    assert play() == play()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60), st.integers(1, 8))
def test_a_window_sums_its_newest_outcomes(outcomes: list[tuple[int, int]], size: int) -> None:
    window = OutcomeWindow(size)
    for useful, wasted in outcomes:
        window.add(useful, wasted)
    newest = outcomes[-size:]
    assert window.useful_bytes == sum(useful for useful, _ in newest)
    assert window.wasted_bytes == sum(wasted for _, wasted in newest)
    assert window.conclusive == (len(newest) >= size / 2)


def test_it_rests_while_compute_hardly_waits_and_not_before_it_has_seen_enough() -> None:
    limiter = PrefetchLimiter(1e9, LimiterRules(least_stall_share=0.1, num_stalls=8))
    for _ in range(3):
        limiter.observe_layer(1.0, 0.0)
        assert not limiter.resting
    limiter.observe_layer(1.0, 0.0)
    assert limiter.resting
    for _ in range(8):
        limiter.observe_layer(1.0, 0.25)
    assert not limiter.resting
    for _ in range(8):
        limiter.observe_layer(1.0, 0.0625)
    assert limiter.resting
