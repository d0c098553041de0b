from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from pgmoe.engine.penalties import penalise, seen_tokens
from pgmoe.request import SamplingParams


@pytest.mark.parametrize("seed", range(8))
def test_penalties_are_transformers_and_openais_row_by_row(seed: int) -> None:
    rng = random.Random(seed)
    vocab_size, num_rows = 200, 9
    scores_RV = 4 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    scores_RV[:, ::17] = -torch.inf
    expected, rows = [], []
    for row in range(num_rows):
        prompt, answer = ([rng.randrange(vocab_size) for _ in range(rng.randint(1, 80))] for _ in range(2))
        params = SamplingParams(
            repetition_penalty=rng.choice([1, 1.3, 0.6]),
            presence_penalty=rng.choice([0, 0.7, -1]),
            frequency_penalty=rng.choice([0, 0.3, -0.2]),
        )
        seen = seen_tokens(params, prompt)
        for token_id in answer:
            if seen is not None:
                seen.add(token_id)
        rows.append((params, seen))
        ids: Any = torch.tensor([prompt + answer])
        penalty = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))
        scores_V = penalty(ids, scores_RV[[row]].clone())[0]
        for token_id, count in Counter(answer).items():
            scores_V[token_id] -= params.frequency_penalty * count
            scores_V[token_id] -= params.presence_penalty
        expected.append(scores_V)
    penalise(scores_RV, rows)
    torch.testing.assert_close(scores_RV, torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_without_penalties_nothing_is_remembered() -> None:
    assert seen_tokens(SamplingParams(), range(10)) is None
