from __future__ import annotations

import pytest
import torch

from pgmoe.engine.logit_bias import LogitBias, add_logit_bias, check_logit_bias
from pgmoe.errors import InvalidRequest
from pgmoe.request import SamplingParams


def test_a_bias_is_added_to_its_tokens_in_its_row_alone() -> None:
    biases: list[tuple[tuple[int, float], ...]] = [((1, 2.0), (3, -5.0)), (), ((0, 0.5),)]
    scores_RV = torch.ones(3, 4)
    add_logit_bias(scores_RV, [LogitBias(SamplingParams(logit_bias=bias)) for bias in biases])
    assert scores_RV.tolist() == [[1, 3, 1, -4], [1, 1, 1, 1], [1.5, 1, 1, 1]]


def test_a_token_past_the_vocabulary_is_refused_with_its_id_and_the_last_one() -> None:
    params = SamplingParams(logit_bias=((3, 1.0), (10, 1.0), (11, 1.0)))
    check_logit_bias(params, 12)
    with pytest.raises(InvalidRequest, match="by token ids from 0 to 9, got 10") as caught:
        check_logit_bias(params, 10)
    assert caught.value.param == "logit_bias"
