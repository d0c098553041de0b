from __future__ import annotations

import pytest

from pgmoe.engine.pace import StepPace, StepTime


def observed(pace: StepPace, answers_s: float, constant_s: float, token_s: float, *, rounds: int = 8) -> None:
    """Steps of four answers, some with prompt tokens beside them."""
    for n in range(rounds):
        pace.observe(StepTime(4, 0, answers_s))
        num_tokens = 32 * (1 + n % 4)
        pace.observe(StepTime(4, num_tokens, answers_s + constant_s + token_s * num_tokens))


def test_without_a_bound_or_answers_to_hold_up_prompts_come_in_whole_chunks() -> None:
    pace = StepPace(512, None)
    observed(pace, 0.01, 0.0, 0.001)
    assert pace.max_prompt_tokens(4) == 512
    pace = StepPace(512, 0.02)
    observed(pace, 0.01, 0.0, 0.001)
    assert pace.max_prompt_tokens(0) == 512


@pytest.mark.parametrize(("bound_s", "tokens"), [(0.11, 100), (0.06, 50), (5.0, 512)])
def test_prompts_get_what_fits_beside_the_answers(bound_s: float, tokens: int) -> None:
    pace = StepPace(512, bound_s)
    observed(pace, 0.01, 0.0, 0.001)
    assert pace.max_prompt_tokens(4) == pytest.approx(tokens, abs=1)


def test_what_any_prompt_costs_is_taken_off_first() -> None:
    pace = StepPace(512, 0.11)
    observed(pace, 0.01, 0.05, 0.001)
    assert pace.max_prompt_tokens(4) == pytest.approx(50, abs=1)


def test_where_not_even_few_tokens_fit_a_whole_chunk_is_read() -> None:
    pace = StepPace(512, 0.05)
    observed(pace, 0.01, 0.2, 0.001)  # experts stream, however few tokens there are
    assert pace.max_prompt_tokens(4) == 512


def test_before_anything_is_measured_few_tokens_are_tried() -> None:
    pace = StepPace(512, 0.05)
    pace.observe(StepTime(4, 0, 0.01))
    assert pace.max_prompt_tokens(4) == 16


def test_the_newest_steps_count() -> None:
    pace = StepPace(512, 0.11)
    observed(pace, 0.01, 0.0, 0.001, rounds=32)
    observed(pace, 0.01, 0.0, 0.002, rounds=32)
    assert pace.max_prompt_tokens(4) == pytest.approx(50, abs=1)


def test_a_prompt_tokens_time_is_known_once_there_was_one() -> None:
    pace = StepPace(512, None)
    assert pace.prompt_token_s is None
    pace.observe(StepTime(0, 100, 0.2))
    assert pace.prompt_token_s == pytest.approx(0.002)
