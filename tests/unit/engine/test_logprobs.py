from __future__ import annotations

import math

import pytest
import torch

from pgmoe.engine.logprobs import prompt_logprobs
from pgmoe.errors import NonFiniteLogits


@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize("num_tokens", [0, 1, 50])
def test_a_prompts_tokens_have_the_log_probabilities_of_the_softmax(num_tokens: int, num_top: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    logits_TV = (3 * torch.randn(num_tokens, 300, generator=generator)).bfloat16()
    next_ids = torch.randint(300, (num_tokens,), generator=generator).tolist()
    expected_TV = logits_TV.float().log_softmax(dim=-1)
    tokens = prompt_logprobs(logits_TV, next_ids, num_top)
    assert [token.token_id for token in tokens] == next_ids
    for row, token in enumerate(tokens):
        assert token.logprob == pytest.approx(expected_TV[row, token.token_id].item())
        best = expected_TV[row].topk(num_top).values.tolist()
        assert [value for _, value in token.top] == pytest.approx(best)
        assert [expected_TV[row, id_].item() for id_, _ in token.top] == pytest.approx(best)


def test_more_likely_tokens_than_the_vocabulary_has_are_all_of_it() -> None:
    (token,) = prompt_logprobs(torch.tensor([[0.0, 1.0, -math.inf]]), [2], 20)
    assert token.logprob == -math.inf
    assert [id_ for id_, _ in token.top] == [1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_of_a_prompt_that_are_not_finite_are_an_error(bad: float) -> None:
    logits_TV = torch.zeros(9, 4)
    logits_TV[7, 2] = bad
    with pytest.raises(NonFiniteLogits, match="of 4 logits"):
        prompt_logprobs(logits_TV, [0] * 9, 0)
