from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pgmoe.engine.batch_sampler import sample
from pgmoe.engine.randomness import uniform
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.sampler import Sampler
from pgmoe.request import SamplingParams

VOCAB_SIZE = 3000
PROMPT = (5, 17, 5, 2999)


def random_params(rng: random.Random) -> SamplingParams:
    """Any mixture of parameters, most of them off."""

    def maybe(value: Any, off: Any) -> Any:
        return value if rng.random() < 0.4 else off

    return SamplingParams(
        temperature=maybe(0.0, rng.uniform(0.3, 2)),
        top_k=maybe(rng.choice([1, 5, 127, 128, 500, 5000]), 0),
        top_p=maybe(rng.uniform(0.05, 0.999), 1.0),
        min_p=maybe(rng.uniform(0, 0.3), 0.0),
        repetition_penalty=maybe(rng.uniform(0.7, 1.8), 1.0),
        presence_penalty=maybe(rng.uniform(-1, 1), 0.0),
        frequency_penalty=maybe(rng.uniform(-1, 1), 0.0),
        logit_bias=maybe(tuple((i, rng.uniform(-5, 5)) for i in rng.sample(range(VOCAB_SIZE), 20)), ()),
        logprobs=maybe(rng.randint(0, 20), None),
        seed=rng.randint(-(2**63), 2**63 - 1),
    )


def random_logits(seed: int, num_rows: int) -> Tensor:
    """In bfloat16, so that many are equal, of various spreads."""
    generator = torch.Generator().manual_seed(seed)
    spread_B1 = torch.linspace(0.05, 4, num_rows)[:, None]
    return (spread_B1 * torch.randn(num_rows, VOCAB_SIZE, generator=generator)).bfloat16()


def answered(params: SamplingParams, answer: list[int], choice: int = 0) -> Sampler:
    return Sampler(params, PROMPT, choice=choice, answer_token_ids=answer)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_gets_the_same_token_whatever_else_is_in_the_batch(seed: int) -> None:
    rng = random.Random(seed)
    num_rows = 30
    logits_BV = random_logits(seed, num_rows)
    params = [random_params(rng) for _ in range(num_rows)]
    answers = [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(0, 30))] for _ in range(num_rows)]
    alone = [sample(logits_BV[[i]], [answered(params[i], answers[i])])[0] for i in range(num_rows)]
    assert all(isinstance(token, SampledToken) for token in alone)
    for size in (2, 7, 16, num_rows):
        rows = rng.sample(range(num_rows), size)
        assert sample(logits_BV[rows], [answered(params[i], answers[i]) for i in rows]) == [
            alone[i] for i in rows
        ]


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_taken_up_again_goes_on_as_it_would_have(seed: int) -> None:
    params = random_params(random.Random(seed))
    logits_TV = random_logits(seed, 20)
    one = Sampler(params, PROMPT, choice=3)
    whole = [sample(logits_TV[[t]], [one])[0] for t in range(20)]
    ids = [token.token_id for token in whole if isinstance(token, SampledToken)]
    for start in (0, 1, 11):
        again = answered(params, ids[:start], choice=3)
        assert [sample(logits_TV[[t]], [again])[0] for t in range(start, 20)] == whole[start:]


def test_without_a_seed_an_answer_goes_on_by_its_samplers_seed() -> None:
    params = SamplingParams()
    logits_TV = random_logits(1, 20)
    one = Sampler(params, ())
    whole = [sample(logits_TV[[t]], [one])[0] for t in range(20)]
    again = Sampler(params, (), seed=one.seed)
    assert [sample(logits_TV[[t]], [again])[0] for t in range(20)] == whole
    replayed = Sampler(SamplingParams(seed=one.seed), ())
    assert [sample(logits_TV[[t]], [replayed])[0] for t in range(20)] == whole


def test_the_parameters_seed_comes_first() -> None:
    assert Sampler(SamplingParams(seed=-3), (), seed=5).seed == -3


def test_choices_and_seeds_have_numbers_of_their_own() -> None:
    params = [SamplingParams(seed=seed) for seed in (0, 1, -1, 2**63 - 1, -(2**63))]
    firsts = {Sampler(p, (), choice=choice).uniform() for p in params for choice in range(16)}
    assert len(firsts) == 5 * 16


def test_random_numbers_are_philoxs_first_words_by_position() -> None:
    generator = np.random.Philox(key=np.array([2**64 - 7, 5], dtype=np.uint64))
    words = generator.random_raw(4 * 50)[::4]  # four words for each value of the counter
    assert [uniform(-7, 5, t) for t in range(50)] == [(int(word) >> 11) * 2.0**-53 for word in words]


def test_a_number_stays_until_its_token_is_remembered() -> None:
    one = Sampler(SamplingParams(seed=1), ())
    first = one.uniform()
    assert one.uniform() == first
    one.remember(4)
    assert one.uniform() != first
    assert one.num_tokens == 1


def test_numbers_are_spread_evenly() -> None:
    numbers = np.array(
        [uniform(seed, choice, t) for seed in range(10) for choice in range(4) for t in range(100)]
    )
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 43.8  # of 19 degrees of freedom; passed by 999 of 1000 such samples


def test_frequencies_over_seeds_choices_and_positions_are_the_probabilities() -> None:
    logits_V = 1.5 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    counts = torch.zeros(40)
    samplers = [Sampler(SamplingParams(seed=seed), (), choice=seed % 3) for seed in range(100)]
    for _ in range(50):
        for token in sample(logits_V.expand(100, -1), samplers):
            assert isinstance(token, SampledToken)
            counts[token.token_id] += 1
    expected = 5000 * logits_V.softmax(dim=-1)
    few = expected < 40  # put together, since chi-square is not meant for rare events
    groups = torch.cat([counts[~few], counts[few].sum()[None]])
    expected = torch.cat([expected[~few], expected[few].sum()[None]])
    assert 20 < len(expected) < 41
    chi_square = ((groups - expected) ** 2 / expected).sum().item()
    assert chi_square < 73.4  # of at most 40 degrees of freedom; passed by 999 of 1000 such samples
