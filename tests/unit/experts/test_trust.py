from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.experts.trust import NUM_GRADES, GuessTrust, TrustRules, grade_of

RULES = TrustRules()
EVIDENCE = RULES.window // 2
"""Outcomes after which a grade is judged."""

grades = st.integers(0, NUM_GRADES - 1)


def feed(trust: GuessTrust, grade: int, right: bool, num_outcomes: int) -> None:
    for _ in range(num_outcomes):
        trust.score(grade, right)


@given(st.integers(1, 300))
def test_grades_follow_the_order_and_divide_it_evenly(num_places: int) -> None:
    found = [grade_of(place, num_places) for place in range(num_places)]
    assert found == sorted(found)
    assert found[0] == 0
    assert max(found) < NUM_GRADES
    sizes = [found.count(grade) for grade in set(found)]
    assert max(sizes) - min(sizes) <= 1


def test_everything_is_trusted_until_there_is_evidence() -> None:
    trust = GuessTrust()
    for grade in range(NUM_GRADES):
        feed(trust, grade, False, EVIDENCE - 1)
    assert trust.on
    assert all(trust.trusts(grade) for grade in range(NUM_GRADES))


@given(grades, st.lists(st.booleans(), max_size=3 * RULES.window))
def test_a_grade_that_is_only_wrong_is_left_out_within_a_window_whatever_came_before(
    grade: int, before: list[bool]
) -> None:
    trust, other = GuessTrust(), (grade + 1) % NUM_GRADES
    feed(trust, other, True, EVIDENCE)
    for right in [*before, *[False] * RULES.window]:
        trust.score(grade, right)
        trust.score(other, True)
    assert not trust.trusts(grade)
    assert trust.trusts(other)
    assert trust.on
    assert trust.num_switches == 0


@given(grades, st.lists(st.booleans(), max_size=3 * RULES.window))
def test_a_grade_that_is_only_right_comes_back_within_a_window_whatever_came_before(
    grade: int, before: list[bool]
) -> None:
    trust = GuessTrust()
    feed(trust, grade, False, EVIDENCE)
    assert not trust.trusts(grade)
    for right in before:
        trust.score(grade, right)
    feed(trust, grade, True, RULES.window)
    assert trust.trusts(grade)


@given(st.lists(st.tuples(grades, st.booleans()), max_size=1500), st.integers(1, 40))
def test_it_is_as_a_plain_reference_says(outcomes: list[tuple[int, bool]], window: int) -> None:
    rules = TrustRules(window=window)
    trust = GuessTrust(rules)
    kept: dict[int, list[bool]] = {grade: [] for grade in range(NUM_GRADES)}
    good = dict.fromkeys(range(NUM_GRADES), True)
    switches, on, newest = 0, True, []
    for grade, right in outcomes:
        trust.score(grade, right)
        kept[grade] = [*kept[grade], right][-window:]
        if len(kept[grade]) >= window / 2:
            least = rules.least_share if good[grade] else rules.return_share
            good[grade] = sum(kept[grade]) / len(kept[grade]) >= least
        newest = [*newest, grade][-window:]
        judged = [g for g in set(newest) if len(kept[g]) >= window / 2]
        now = not judged or any(good[g] for g in judged)
        switches += now != on
        on = now
        assert trust.on == on
        assert trust.num_switches == switches
        assert [trust.trusts(g) for g in kept] == [on and good[g] for g in kept]


def test_it_is_off_when_no_judged_grade_is_good_and_then_trusts_nothing() -> None:
    trust = GuessTrust()
    feed(trust, 0, False, EVIDENCE)
    feed(trust, 4, False, EVIDENCE)
    assert not trust.on  # as with two experts a token: the other grades never occur
    assert not any(trust.trusts(grade) for grade in range(NUM_GRADES))
    feed(trust, 0, True, RULES.window)
    assert trust.on
    assert trust.num_switches == 2
    assert trust.trusts(0)
    assert not trust.trusts(4)


def test_grades_that_no_longer_occur_keep_nothing_on() -> None:
    """As those of an order with more places, seen once."""
    trust = GuessTrust()
    for grade in (1, 3, 5, 7):
        feed(trust, grade, True, RULES.window)
    feed(trust, 0, False, RULES.window - 1)
    assert trust.on
    trust.score(0, False)
    assert not trust.on


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_guesses_that_are_right_half_of_the_time_do_not_come_and_go(share: float) -> None:
    trust = GuessTrust()
    draw = random.Random(0)
    for _ in range(20_000):
        trust.score(0, draw.random() < share)
    assert trust.num_switches == 1


def test_guesses_right_seven_times_in_ten_stay() -> None:
    trust = GuessTrust()
    draw = random.Random(1)
    for _ in range(20_000):
        trust.score(0, draw.random() < 0.7)
    assert trust.num_switches == 0


def test_some_layers_are_sampled_while_off_and_none_while_on() -> None:
    trust = GuessTrust()
    assert not any(trust.sample() for _ in range(100))
    feed(trust, 0, False, EVIDENCE)
    sampled = [trust.sample() for _ in range(1000 * RULES.sample_every)]
    assert 900 < sum(sampled) < 1100
    for num_layers in (2, RULES.sample_every, 2 * RULES.sample_every):  # every layer has its turn
        assert all(any(sampled[layer::num_layers]) for layer in range(num_layers))
