from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pgmoe.engine.sampler import Sampler
from pgmoe.errors import NonFiniteLogits
from pgmoe.request import SamplingParams

CPU = torch.device("cpu")


def sampler(prompt: tuple[int, ...] = (), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, CPU)


def draws(logits_V: Tensor, count: int, **params: Any) -> list[int]:
    one = sampler(**params)
    return [one.sample(logits_V).token_id for _ in range(count)]


def random_logits(size: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def reference_probabilities(logits_V: Tensor, **params: Any) -> Tensor:
    """What transformers' own chain draws from, in the order of its `generate`."""
    chain = LogitsProcessorList(
        [
            TemperatureLogitsWarper(params.get("temperature", 1.0)),
            TopKLogitsWarper(params.get("top_k") or logits_V.numel()),
            TopPLogitsWarper(params.get("top_p", 1.0)),
            MinPLogitsWarper(params.get("min_p", 0.0)),
        ]
    )
    ids: Any = torch.zeros(1, 0, dtype=torch.long)
    return chain(ids, logits_V[None].clone())[0].softmax(dim=-1)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("seed", [1, 2**40, -5, 2**63 - 1])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_a_seeded_answer_is_the_one_of_transformers_generate(
    model: LlamaForCausalLM, seed: int, repetition_penalty: float
) -> None:
    prompt = (5, 17, 5)
    ours = sampler(prompt, temperature=0.7, repetition_penalty=repetition_penalty, seed=seed)
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(12):
            ids.append(ours.sample(model(torch.tensor([ids])).logits[0, -1]).token_id)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 0}
    expected = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        max_new_tokens=12,
        repetition_penalty=repetition_penalty,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    assert ids == expected[0].tolist()


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
        other.sample(logits_V)
        among_others.append(one.sample(logits_V).token_id)
    assert among_others == alone
    assert alone != draws(logits_V, 30, seed=8)


def test_without_a_seed_every_request_gets_its_own_tokens() -> None:
    torch.manual_seed(0)
    first = draws(random_logits(1000), 30)
    torch.manual_seed(0)
    assert draws(random_logits(1000), 30) != first


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.95, "min_p": 0.15},
        {"top_p": 1e-9},
        {"top_k": 1000},
    ],
)
def test_tokens_come_as_often_as_transformers_chain_says(params: dict[str, Any]) -> None:
    logits_V, count = random_logits(12), 2000
    expected = reference_probabilities(logits_V, **params)
    seen = Counter(draws(logits_V, count, seed=3, **params))
    for token_id, p in enumerate(expected.tolist()):
        if p == 0:
            assert seen[token_id] == 0
        else:
            assert abs(seen[token_id] / count - p) <= 4 * math.sqrt(p * (1 - p) / count) + 1e-9


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_top_p_keeps_the_nucleus_of_a_large_vocabulary(scale: float) -> None:
    """Whether the nucleus has more tokens than are tried first (flat logits) or fewer (peaked ones)."""
    logits_V, count = scale * random_logits(20_000), 300
    expected = reference_probabilities(logits_V, top_p=0.9)
    tokens = torch.tensor(draws(logits_V, count, seed=1, top_p=0.9))
    assert (expected[tokens] > 0).all()
    for num_likeliest in (10, 1000, 10_000):
        likeliest = logits_V.topk(num_likeliest).indices
        p = expected[likeliest].sum().item()
        seen = torch.isin(tokens, likeliest).float().mean().item()
        assert abs(seen - p) <= 4 * math.sqrt(p * abs(1 - p) / count) + 1e-6


def test_top_p_is_a_share_of_the_whole_vocabulary() -> None:
    """The tenth token belongs to the nucleus only if the 20,000 unlikely ones are counted, too."""
    head = torch.tensor([0.1] * 8 + [0.06, 0.05])
    tail = torch.full((20_000,), (1 - head.sum().item()) / 20_000)
    assert set(draws(torch.cat([head, tail]).log(), 400, seed=1, top_p=0.9)) == set(range(10))


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
        assert sampler((0, 0), temperature=0, **{name: 2.0}).sample(logits_V).token_id == 0
    assert sampler((0, 0), temperature=0, repetition_penalty=2.0).sample(logits_V).token_id == 1


def test_a_repetition_penalty_makes_negative_logits_smaller_and_applies_to_the_answer() -> None:
    one = sampler((0,), temperature=0, repetition_penalty=2.0)
    logits_V = torch.tensor([-1.0, -1.5, -2.5])
    assert [one.sample(logits_V).token_id for _ in range(2)] == [1, 0]


def test_prompt_tokens_past_the_vocabulary_of_the_output_are_ignored_by_penalties() -> None:
    one = sampler((9,), temperature=0, repetition_penalty=2.0, presence_penalty=1.0)
    assert one.sample(torch.tensor([0.0, 1.0])).token_id == 1


def test_logprobs_are_the_models_own_whatever_shapes_the_choice() -> None:
    logits_V = random_logits(50).bfloat16()
    one = sampler((3,), temperature=0.3, top_k=2, repetition_penalty=1.5, frequency_penalty=1.0, logprobs=4)
    expected = logits_V.float().log_softmax(dim=-1)
    for _ in range(3):
        token = one.sample(logits_V)
        assert token.logprob == pytest.approx(expected[token.token_id].item())
        assert [id_ for id_, _ in token.top] == expected.topk(4).indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(expected.topk(4).values.tolist())


def test_logprobs_come_only_when_asked_for() -> None:
    logits_V = torch.tensor([0.0, 0.0])
    assert sampler(temperature=0).sample(logits_V).logprob is None
    bare = sampler(temperature=0, logprobs=0).sample(logits_V)
    assert (bare.logprob, bare.top) == (pytest.approx(math.log(0.5)), ())


def test_impossible_tokens_are_neither_drawn_nor_reported() -> None:
    logits_V = torch.tensor([-math.inf, 1.0, -math.inf, 1.0])
    one = sampler(seed=1, logprobs=4)
    for _ in range(20):
        token = one.sample(logits_V)
        assert token.token_id in (1, 3)
        assert [id_ for id_, _ in token.top] == [1, 3]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.5, "frequency_penalty": 1.0}])
@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_a_clear_error(params: dict[str, Any], logits: list[float]) -> None:
    with pytest.raises(NonFiniteLogits, match=r"of 2 logits . are NaN and . infinite.*float32"):
        sampler(**params).sample(torch.tensor(logits))


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
        token = one.sample(logits_V)
        assert 0 <= token.token_id < len(logits)
        assert token.logprob is not None
        assert token.logprob <= 1e-6
    assert torch.equal(logits_V, torch.tensor(logits))
