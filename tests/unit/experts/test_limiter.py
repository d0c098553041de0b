from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.experts.limiter import LimiterRules, PrefetchLimiter

RULES = LimiterRules()


@given(
    st.floats(1e6, 1e11),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=50),
    st.integers(0, 2**40),
)
def test_guesses_get_what_the_link_carries_in_the_compute_window_and_no_more(
    bandwidth: float, layers: list[tuple[float, float]], in_flight: int
) -> None:
    found = PrefetchLimiter(bandwidth)
    for seconds, stall_s in layers:
        found.observe_layer(seconds, stall_s)
    windows = [max(0.0, seconds - stall_s) for seconds, stall_s in layers][-RULES.num_windows :]
    budget = int(bandwidth * median(windows)) if windows else 0
    allowed = found.allowance(in_flight)
    assert allowed == max(0, budget - in_flight)
    assert found.allowance(in_flight) == allowed  # asking changes nothing


def test_nothing_is_guessed_before_a_window_was_measured() -> None:
    assert PrefetchLimiter(1e9).allowance(0) == 0


def test_a_long_prompt_does_not_widen_the_window_of_single_tokens() -> None:
    found = PrefetchLimiter(1e9)
    for _ in range(20):
        found.observe_layer(0.003, 0.001)
    for _ in range(8):
        found.observe_layer(0.5, 0.0)
    assert found.window_s == pytest.approx(0.002)


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


def test_a_prompt_says_nothing_of_whether_single_tokens_wait() -> None:
    limiter = PrefetchLimiter(1e9, LimiterRules(least_stall_share=0.1, num_stalls=8))
    for _ in range(8):
        limiter.observe_layer(1.0, 0.25)
    for _ in range(8):
        limiter.observe_layer(100.0, 0.0, lone=False)
    assert not limiter.resting
