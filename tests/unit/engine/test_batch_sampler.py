from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgmoe.engine.batch_sampler import sample
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.sampler import Sampler
from pgmoe.errors import NonFiniteLogits
from pgmoe.request import SamplingParams


def sampler(prompt: tuple[int, ...] = (), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt)


def next_token(one: Sampler, logits_V: Tensor) -> SampledToken:
    (token,) = sample(logits_V[None], [one])
    if isinstance(token, SampledToken):
        return token
    raise token


def draws(logits_V: Tensor, count: int, **params: Any) -> list[int]:
    one = sampler(**params)
    return [next_token(one, logits_V).token_id for _ in range(count)]


def random_logits(size: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_temperature_0_takes_the_likeliest_token_and_no_random_number(dtype: torch.dtype) -> None:
    logits_V = random_logits(500).to(dtype)
    state = torch.get_rng_state()
    assert draws(logits_V, 3, temperature=0.0, top_p=0.5, seed=1) == [int(logits_V.argmax())] * 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [1e-5, 1e-300, 5e-324])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    assert set(draws(torch.tensor([1.0, 1.1, 0.9]), 20, temperature=temperature)) == {1}


def test_a_low_temperature_does_not_overflow_on_huge_logits() -> None:
    assert draws(torch.tensor([-3e38, 3e38, 2e38]), 3, temperature=0.001) == [1, 1, 1]


def test_the_same_seed_gives_the_same_tokens_whatever_else_runs() -> None:
    logits_V = random_logits(100)
    alone = draws(logits_V, 30, seed=7)
    one, other, among_others = sampler(seed=7), sampler(seed=8), []
    for i in range(30):
        torch.manual_seed(i)
        next_token(other, logits_V)
        among_others.append(next_token(one, logits_V).token_id)
    assert among_others == alone
    assert alone != draws(logits_V, 30, seed=8)


def test_without_a_seed_every_request_gets_its_own_tokens() -> None:
    torch.manual_seed(0)
    first = draws(random_logits(1000), 30)
    torch.manual_seed(0)
    assert draws(random_logits(1000), 30) != first


def test_a_frequency_penalty_grows_with_each_use() -> None:
    assert draws(torch.tensor([1.0, 0.9]), 6, temperature=0, frequency_penalty=0.04) == [0, 0, 0, 1, 0, 1]


def test_a_presence_penalty_is_taken_once() -> None:
    logits_V = torch.tensor([1.0, 0.9, 0.2])
    assert draws(logits_V, 4, temperature=0, presence_penalty=0.3) == [0, 1, 0, 0]


def test_negative_penalties_favour_repetition() -> None:
    assert draws(torch.tensor([1.0, 1.0]), 3, temperature=0, presence_penalty=-1.0) == [0, 0, 0]


def test_presence_and_frequency_look_at_the_answer_alone_and_repetition_at_the_prompt_too() -> None:
    logits_V = torch.tensor([1.0, 0.9])
    for name in ("presence_penalty", "frequency_penalty"):
        assert next_token(sampler((0, 0), temperature=0, **{name: 2.0}), logits_V).token_id == 0
    assert next_token(sampler((0, 0), temperature=0, repetition_penalty=2.0), logits_V).token_id == 1


def test_a_repetition_penalty_makes_negative_logits_smaller_and_applies_to_the_answer() -> None:
    one = sampler((0,), temperature=0, repetition_penalty=2.0)
    logits_V = torch.tensor([-1.0, -1.5, -2.5])
    assert [next_token(one, logits_V).token_id for _ in range(2)] == [1, 0]


def test_prompt_tokens_past_the_vocabulary_of_the_output_are_ignored_by_penalties() -> None:
    one = sampler((9,), temperature=0, repetition_penalty=2.0, presence_penalty=1.0)
    assert next_token(one, torch.tensor([0.0, 1.0])).token_id == 1


def test_logprobs_are_the_models_own_whatever_shapes_the_choice() -> None:
    logits_V = random_logits(50).bfloat16()
    one = sampler((3,), temperature=0.3, top_k=2, repetition_penalty=1.5, frequency_penalty=1.0, logprobs=4)
    expected = logits_V.float().log_softmax(dim=-1)
    for _ in range(3):
        token = next_token(one, logits_V)
        assert token.logprob == pytest.approx(expected[token.token_id].item())
        assert [id_ for id_, _ in token.top] == expected.topk(4).indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(expected.topk(4).values.tolist())


def test_logprobs_come_only_when_asked_for() -> None:
    logits_V = torch.tensor([0.0, 0.0])
    assert next_token(sampler(temperature=0), logits_V).logprob is None
    bare = next_token(sampler(temperature=0, logprobs=0), logits_V)
    assert bare.logprob == pytest.approx(math.log(0.5))
    assert bare.top == ()


def test_impossible_tokens_are_neither_drawn_nor_reported() -> None:
    logits_V = torch.tensor([-math.inf, 1.0, -math.inf, 1.0])
    one = sampler(seed=1, logprobs=4)
    for _ in range(20):
        token = next_token(one, logits_V)
        assert token.token_id in (1, 3)
        assert [id_ for id_, _ in token.top] == [1, 3]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.5, "frequency_penalty": 1.0}])
@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_a_clear_error(params: dict[str, Any], logits: list[float]) -> None:
    with pytest.raises(NonFiniteLogits, match=r"of 2 logits . are NaN and . infinite.*float32"):
        next_token(sampler(**params), torch.tensor(logits))


@given(
    logits=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    temperature=st.floats(0, 10),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 10),
    min_p=st.floats(0, 1),
    penalty=st.floats(-2, 2),
)
@settings(max_examples=300, deadline=None)
def test_any_finite_logits_and_valid_parameters_give_a_token(logits: list[float], **values: Any) -> None:
    penalty = values.pop("penalty")
    one = sampler((0,), presence_penalty=penalty, frequency_penalty=penalty, logprobs=2, **values)
    logits_V = torch.tensor(logits)
    for _ in range(2):
        token = next_token(one, logits_V)
        assert 0 <= token.token_id < len(logits)
        assert token.logprob is not None
        assert token.logprob <= 1e-6
    assert torch.equal(logits_V, torch.tensor(logits))


def test_a_bias_is_added_before_penalties_and_the_choice() -> None:
    assert draws(torch.tensor([1.0, 0.0, 0.5]), 3, temperature=0, logit_bias=((1, 1.5),)) == [1, 1, 1]
    assert draws(torch.tensor([1.0, 0.0]), 3, seed=1, logit_bias=((0, -100),)) == [1, 1, 1]
    # -1 + 2 is positive, so that the penalty divides
    one = sampler((0,), temperature=0, logit_bias=((0, 2.0),), repetition_penalty=2.0)
    assert next_token(one, torch.tensor([-1.0, 0.4])).token_id == 0


def test_logprobs_do_not_see_the_bias() -> None:
    token = next_token(sampler(temperature=0, logit_bias=((1, 50.0),), logprobs=2), torch.tensor([0.0, 0.0]))
    assert token.token_id == 1
    assert token.logprob == pytest.approx(math.log(0.5))


def test_a_row_that_is_not_finite_is_an_error_in_its_place_and_the_others_go_on() -> None:
    logits_BV = torch.stack([random_logits(50, seed=i) for i in range(7)])
    logits_BV[1, 3] = math.nan
    logits_BV[4] = -math.inf
    logits_BV[5, 0] = math.inf
    samplers = [sampler(seed=i, top_p=0.9, logprobs=1) for i in range(6)] + [sampler(temperature=0)]
    results = sample(logits_BV, samplers)
    assert [row for row, result in enumerate(results) if isinstance(result, NonFiniteLogits)] == [1, 4, 5]
    assert [one.num_tokens for one in samplers] == [1, 0, 1, 1, 0, 0, 1]
    for row in (0, 2, 3, 6):
        alone = sampler(seed=row, top_p=0.9, logprobs=1) if row < 6 else sampler(temperature=0)
        assert results[row] == next_token(alone, logits_BV[row])


def test_penalties_that_leave_the_range_of_fp32_are_an_error() -> None:
    one = sampler((0, 1), temperature=0, repetition_penalty=0.01)
    with pytest.raises(NonFiniteLogits, match="leave no finite score"):
        next_token(one, torch.tensor([3e38, 2e38]))


def test_an_empty_batch_has_no_tokens() -> None:
    assert sample(torch.empty(0, 10), []) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_stay_as_they_are(dtype: torch.dtype) -> None:
    logits_BV = torch.stack([random_logits(60, seed=i) for i in range(3)]).to(dtype)
    before = logits_BV.clone()
    penalised = {"repetition_penalty": 1.4, "logit_bias": ((2, 3.0),), "top_k": 3, "logprobs": 2}
    sample(logits_BV, [sampler((1, 2), **penalised), sampler(temperature=0), sampler(min_p=0.2)])
    assert torch.equal(logits_BV, before)
