"""What a request adds to the logits of single tokens.

Shape letters: R rows, V vocabulary, E biased tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pgmoe.errors import InvalidRequest
from pgmoe.sampling_params import SamplingParams


def check_logit_bias(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidRequest if a biased token is not one of the model's, whose ids are below `vocab_size`."""
    wrong = next((token_id for token_id, _ in params.logit_bias if token_id >= vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"logit_bias must be by token ids from 0 to {vocab_size - 1}, got {wrong}", "logit_bias"
        )


class LogitBias:
    """The biased tokens of one request, which `check_logit_bias` found in the vocabulary."""

    def __init__(self, params: SamplingParams) -> None:
        self.ids = np.array([token_id for token_id, _ in params.logit_bias], dtype=np.int64)
        self.biases = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)

    def __len__(self) -> int:
        return len(self.ids)


def add_logit_bias(scores_RV: Tensor, bias_R: Sequence[LogitBias]) -> None:
    """Change `scores_RV` (fp32) in place; only the biased tokens are touched."""
    if not any(bias_R):
        return
    rows_E = np.repeat(np.arange(len(bias_R)), [len(bias) for bias in bias_R])
    where_2E = np.stack([rows_E, np.concatenate([bias.ids for bias in bias_R])])
    assert where_2E[1].max() < scores_RV.shape[1], "check_logit_bias comes first"
    at_row_E, at_id_E = torch.from_numpy(where_2E).to(scores_RV.device)
    biases_E = torch.from_numpy(np.concatenate([bias.biases for bias in bias_R])).to(scores_RV.device)
    scores_RV[at_row_E, at_id_E] += biases_E
