"""Drawing a token by a random number, for several rows at once.

Probabilities are counted in whole units of 2**-53. Sums of whole numbers are exact in any order, so neither a
row's neighbours nor the number of candidates that are looked at can change what is drawn.

Shape letters: R rows, V vocabulary, C candidates (likeliest first), 1 a column that goes with every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgmoe.sampling_params import SamplingParams

_UNITS = 2.0**53
_WIDTHS = (128, 2048)
"""How many of the likeliest tokens are tried first; sorting a whole vocabulary takes milliseconds."""


def draw(scores_RV: Tensor, params_R: Sequence[SamplingParams], uniform_R: Sequence[float]) -> Tensor:
    """Token ids (R,), int64, drawn after temperature, top_k, top_p and min_p, by uniform numbers in [0, 1).

    `scores_RV` are fp32, at most 0 with a 0 in each row; -inf is never drawn. Which tokens stay is what
    transformers' TemperatureLogitsWarper, TopK-, TopP- and MinPLogitsWarper say, one after the other: what
    equals the k-th stays, and of equal tokens at the end of the nucleus as many as top_p needs, those of the
    lowest ids (transformers leaves open which). What is drawn from a row that holds NaN is any token.
    """
    vocab_size = scores_RV.shape[1]
    scores_RV = scores_RV / _column([p.temperature for p in params_R], scores_RV, torch.float32)
    chances_RV = scores_RV.softmax(dim=-1)
    uniform_R1 = _column(uniform_R, scores_RV)
    open_ = [row for row, p in enumerate(params_R) if 0 < p.top_k < vocab_size or p.top_p < 1]
    whole = sorted(set(range(len(params_R))) - set(open_))
    ids_R = torch.empty(len(params_R), dtype=torch.int64, device=scores_RV.device)
    if whole:
        chances_WV = chances_RV[whole]
        kept_WV = _likely_enough(chances_WV, [params_R[row] for row in whole])
        ids_R[whole] = _pick(_in_units(chances_WV).where(kept_WV, 0), uniform_R1[whole])
    for width in (*(width for width in _WIDTHS if width < vocab_size), vocab_size):
        if not open_:
            break
        params = [params_R[row] for row in open_]
        ids_R[open_], sure = _draw_likeliest(
            scores_RV[open_], chances_RV[open_], params, uniform_R1[open_], width
        )
        open_ = [row for row, ok in zip(open_, sure.tolist(), strict=True) if not ok]
    return ids_R


def _draw_likeliest(
    scores_RV: Tensor, chances_RV: Tensor, params: Sequence[SamplingParams], uniform_R1: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Ids (R,) drawn among the `width` likeliest; whether (R,) those are all that top_k and top_p leave."""
    scores_RC, ids_RC = _likeliest(scores_RV, width)
    chances_RC = chances_RV.gather(1, ids_RC)
    units_RC = _in_units(chances_RC)
    top_k = [p.top_k if p.top_k < scores_RV.shape[1] else 0 for p in params]
    top_k_R1, top_p_R1 = _column(top_k, scores_RV, torch.int64), _column([p.top_p for p in params], scores_RV)
    kth_R1 = scores_RC.gather(1, top_k_R1.clamp(1, width) - 1)
    kept_RC = (scores_RC > -torch.inf) & ((scores_RC >= kth_R1) | (top_k_R1 == 0))
    units_RC = units_RC.where(kept_RC, 0)
    # top_p is a share of what top_k leaves, and else of the whole vocabulary
    total_R1 = units_RC.sum(dim=-1, keepdim=True).double().where(top_k_R1 > 0, _UNITS)
    before_RC = units_RC.cumsum(dim=-1) - units_RC
    nucleus_RC = kept_RC & ((before_RC < top_p_R1 * total_R1) | (top_p_R1 == 1))
    # Sure is what ends above the last candidate: others that equal that one may not be among the candidates.
    last_R1 = kept_RC.where(top_k_R1 > 0, nucleus_RC).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    sure_R1 = scores_RC.gather(1, last_R1) > scores_RC[:, -1:]
    sure_R1 |= width == scores_RV.shape[1]
    picked_R = _pick(units_RC.where(nucleus_RC & _likely_enough(chances_RC, params), 0), uniform_R1)
    return ids_RC.gather(1, picked_R[:, None]).squeeze(1), sure_R1.squeeze(1)


def _likeliest(scores_RV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Scores and ids (R, C) of the `width` likeliest tokens, of equal ones those with the lower id first.

    Which ones of several that equal the last are among them is open, unless it is the whole vocabulary.
    """
    if width == scores_RV.shape[1]:
        scores_RC, ids_RC = scores_RV.sort(dim=-1, descending=True, stable=True)
        return scores_RC, ids_RC
    ids_RC = scores_RV.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
    scores_RC, order_RC = scores_RV.gather(1, ids_RC).sort(dim=-1, descending=True, stable=True)
    return scores_RC, ids_RC.gather(1, order_RC)


def _likely_enough(chances_RC: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Whether (R, C) min_p lets a token stay: it is this likely in comparison with the likeliest."""
    min_p_R1 = _column([p.min_p for p in params], chances_RC, torch.float32)
    return chances_RC >= min_p_R1 * chances_RC.amax(dim=-1, keepdim=True)


def _in_units(chances_RC: Tensor) -> Tensor:
    return (chances_RC * _UNITS).long()  # the product is exact: a power of two


def _pick(units_RC: Tensor, uniform_R1: Tensor) -> Tensor:
    """Where (R,) the running sum of the units passes the uniform number's share of their total."""
    ends_RC = units_RC.cumsum(dim=-1)
    total_R1 = ends_RC[:, -1:]
    at_R1 = (uniform_R1 * total_R1).long().minimum(total_R1 - 1)  # the product may be rounded up
    return torch.searchsorted(ends_RC, at_R1, right=True).squeeze(1).clamp(max=units_RC.shape[1] - 1)


def _column(numbers_R: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers_R, dtype=dtype, device=like.device)[:, None]
