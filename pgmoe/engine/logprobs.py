"""Log-probabilities of tokens under the model's own distribution.

Shape letters: N rows of logits, T tokens, R those of one slice, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pgmoe.engine.non_finite import non_finite
from pgmoe.engine.row_slices import row_slices
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.sampling_params import MAX_LOGPROBS


def with_logprobs(
    logits_NV: Tensor, rows_T: Sequence[int], ids_T: Sequence[int], num_top_T: Sequence[int]
) -> list[SampledToken]:
    """The tokens `ids_T`, each with its log-probability and `num_top_T` (0 to MAX_LOGPROBS) likeliest ones.

    Those of token t are by row `rows_T[t]` of `logits_NV`, which is of any float dtype and -inf where a token
    is impossible, whose log-probability is -inf, too. Which of several that equal the last of `top` are
    named is open, but the same for the same logits.
    """
    tokens: list[SampledToken] = []
    for slice_R in row_slices(range(len(ids_T)), logits_NV):
        logprobs_RV = logits_NV[[rows_T[t] for t in slice_R]].log_softmax(dim=-1, dtype=torch.float32)
        ids_R1 = torch.tensor([ids_T[t] for t in slice_R], device=logits_NV.device)[:, None]
        chosen_R = logprobs_RV.gather(1, ids_R1).squeeze(1).tolist()
        # always as many: what topk makes of equal values depends on how many are asked for
        num_top = min(MAX_LOGPROBS, logprobs_RV.shape[1]) if any(num_top_T[t] for t in slice_R) else 0
        values_RK, top_ids_RK = logprobs_RV.topk(num_top, dim=-1)
        tops_R = zip(top_ids_RK.tolist(), values_RK.tolist(), strict=True)
        for t, logprob, (top_ids, values) in zip(slice_R, chosen_R, tops_R, strict=True):
            pairs = list(zip(top_ids, values, strict=True))[: num_top_T[t]]
            top = tuple((id_, value) for id_, value in pairs if value > -math.inf)
            tokens.append(SampledToken(token_id=ids_T[t], logprob=logprob, top=top))
    return tokens


def prompt_logprobs(logits_TV: Tensor, next_ids_T: Sequence[int], num_top: int) -> list[SampledToken]:
    """The prompt's tokens with their log-probabilities: `next_ids_T[t]` is the one after position t.

    `logits_TV` are those of the positions before the tokens, in any float dtype; a few rows at a time are
    computed in fp32. Raises NonFiniteLogits if they hold NaN or +inf.
    """
    assert len(logits_TV) == len(next_ids_T)
    num_tokens = len(next_ids_T)
    tokens = with_logprobs(logits_TV, range(num_tokens), next_ids_T, [num_top] * num_tokens)
    for row, token in enumerate(tokens):
        if token.logprob is None or math.isnan(token.logprob):
            raise non_finite(logits_TV[row])
    return tokens
