"""The next tokens of all running answers, chosen in one step.

Shape letters: B batch, V vocabulary, R rows of one slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pgmoe.engine.draw import draw
from pgmoe.engine.logit_bias import add_logit_bias
from pgmoe.engine.logprobs import with_logprobs
from pgmoe.engine.non_finite import non_finite
from pgmoe.engine.penalties import penalise
from pgmoe.engine.row_slices import row_slices
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.sampler import Sampler
from pgmoe.errors import PgmoeError


def sample(logits_BV: Tensor, samplers: Sequence[Sampler]) -> list[SampledToken | PgmoeError]:
    """Choose each answer's next token, which its sampler then remembers; a row's error stands in its place.

    `logits_BV` is of any float dtype, on any device, and stays as it is; -inf forbids a token. Computed in
    fp32. Order, as in vLLM: response_format, logit_bias, penalties, temperature, top_k, top_p, min_p. Of
    equally likely tokens a greedy row takes the first.

    Errors: NonFiniteLogits if a row holds NaN or +inf, or nothing may be chosen; InvalidRequest if its guide
    is stuck. Their samplers remember nothing.
    """
    assert len(logits_BV) == len(samplers)
    errors: dict[int, PgmoeError] = {}
    best_B, ids_B = logits_BV.max(dim=-1)  # NaN, where there is one
    best_B = best_B.float()
    rows = [row for row, sampler in enumerate(samplers) if sampler.reshapes or not sampler.greedy]
    shaped_B = best_B.clone()
    for rows_R in row_slices(rows, logits_BV):
        part = [samplers[row] for row in rows_R]
        scores_RV = logits_BV[list(rows_R)].float()
        shaped_B[rows_R], ids_B[rows_R] = _choose(scores_RV, part, rows_R, errors)
    finite = torch.stack([best_B, shaped_B]).isfinite().all(dim=0).tolist()
    ids = ids_B.tolist()
    for row, sampler in enumerate(samplers):
        if row not in errors and not finite[row]:
            errors[row] = non_finite(logits_BV[row])
        if row not in errors:
            _remember(sampler, row, ids[row], errors)
    return _results(logits_BV, samplers, ids, errors)


def _choose(
    scores_RV: Tensor, samplers: Sequence[Sampler], rows_R: Sequence[int], errors: dict[int, PgmoeError]
) -> tuple[Tensor, Tensor]:
    """The best score (R,) and the chosen id (R,) of each row, of logits that are changed in place."""
    _forbid(scores_RV, samplers, rows_R, errors)
    add_logit_bias(scores_RV, [sampler.bias for sampler in samplers])
    penalise(scores_RV, [(sampler.params, sampler.seen) for sampler in samplers])
    best_R, ids_R = scores_RV.max(dim=-1)
    drawn = [index for index, sampler in enumerate(samplers) if not sampler.greedy]
    if drawn:
        # at most 0, no temperature can make them overflow
        scores_RV = scores_RV[drawn] - best_R[drawn, None]
        some = [samplers[index] for index in drawn]
        ids_R[drawn] = draw(scores_RV, [s.params for s in some], [s.uniform() for s in some])
    return best_R, ids_R


def _forbid(
    scores_RV: Tensor, samplers: Sequence[Sampler], rows_R: Sequence[int], errors: dict[int, PgmoeError]
) -> None:
    """-inf for what the guides do not let follow; a guide that is stuck is an error of its row."""
    guided, allowed = [], []
    for index, sampler in enumerate(samplers):
        if sampler.guide is None:
            continue
        try:
            allowed.append(sampler.guide.allowed(scores_RV.shape[1]))
        except PgmoeError as error:
            errors[rows_R[index]] = error
        else:
            guided.append(index)
    if guided:
        allowed_GV = torch.from_numpy(np.stack(allowed)).to(scores_RV.device)
        scores_RV[guided] = scores_RV[guided].where(allowed_GV, -math.inf)


def _remember(sampler: Sampler, row: int, token_id: int, errors: dict[int, PgmoeError]) -> None:
    try:
        sampler.remember(token_id)
    except PgmoeError as error:
        errors[row] = error


def _results(
    logits_BV: Tensor, samplers: Sequence[Sampler], ids: Sequence[int], errors: dict[int, PgmoeError]
) -> list[SampledToken | PgmoeError]:
    results: list[SampledToken | PgmoeError] = [
        errors[row] if row in errors else SampledToken(token_id=id_) for row, id_ in enumerate(ids)
    ]
    asking = [
        (row, num_top)
        for row, sampler in enumerate(samplers)
        if (num_top := sampler.params.logprobs) is not None and row not in errors
    ]
    if asking:
        rows = [row for row, _ in asking]
        tokens = with_logprobs(logits_BV, rows, [ids[row] for row in rows], [num for _, num in asking])
        for row, token in zip(rows, tokens, strict=True):
            results[row] = token
    return results
