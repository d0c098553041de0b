"""Low-rank deltas of experts: y_e = W_e x + scale B_e A_e x, with W frozen (LoRA, arXiv 2106.09685).

Ours, and not peft's `target_parameters`: that one adds B A to the fused weight of all experts in every
forward pass and so materialises both the sum and its gradient, which costs as much as training W. Here only
products with vectors are computed, and only for experts that have tokens. Shape letters: N tokens, K experts
a token, M = N K pairs, P places for them
(sorted by expert), E experts, D model width, I expert width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from pgmoe.errors import UnsupportedModel

IMPLEMENTATION = "pgmoe_low_rank"
CHILD = "low_rank"
"""Name of the factors in their experts module."""
MATRICES = ("gate_up_proj", "down_proj")
GRANULE = 32
"""oneDNN compiles a product anew for each number of rows, which on a CPU takes longer than the product."""


class LowRank(nn.Module):
    """The factors of one layer's experts, float32. B starts as zero, so training starts from the base."""

    def __init__(self, experts: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        """`experts` is of transformers' fused layout; `generator` (CPU) draws A."""
        super().__init__()
        self.scale = scale
        for name in MATRICES:
            weight = cast(Tensor, getattr(experts, name))
            num_experts, num_out, num_in = weight.shape
            bound = 1 / math.sqrt(num_in)  # Kaiming-uniform with a = sqrt(5), as LoRA's authors draw it
            a_ERi = (torch.rand(num_experts, rank, num_in, generator=generator) * 2 - 1) * bound
            b_EoR = torch.zeros(num_experts, num_out, rank)
            self.register_parameter(f"{name}_a", nn.Parameter(a_ERi.to(weight.device)))
            self.register_parameter(f"{name}_b", nn.Parameter(b_EoR.to(weight.device)))

    def factors(self, name: str, dtype: torch.dtype) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """A and B of each expert. unbind: its gradient is one stack; indexing would add up E of them."""
        a_ERi, b_EoR = getattr(self, f"{name}_a"), getattr(self, f"{name}_b")
        return a_ERi.to(dtype).unbind(0), b_EoR.to(dtype).unbind(0)


def attach(model: PreTrainedModel, rank: int, scale: float, seed: int) -> None:
    """Give every experts module of `model` its factors and have it compute with them.

    The factors need gradients; nothing is frozen or thawed. Raises UnsupportedModel for experts that are not
    gated, have biases, or are not fused.
    """
    found = list(_experts(model))
    if not found:
        raise UnsupportedModel(
            f"{type(model).__name__}: a rank needs fused experts without biases; train all or gates"
        )
    generator = torch.Generator().manual_seed(seed)
    for experts in found:
        experts.add_module(CHILD, LowRank(experts, rank, scale, generator))
    ExpertsInterface.register(IMPLEMENTATION, low_rank_experts)
    model.set_experts_implementation(IMPLEMENTATION)


def merge(weight_EoI: Tensor, a_ERi: Tensor, b_EoR: Tensor, scale: float = 1.0) -> Tensor:
    """W + scale B A of all experts, computed in float32 and rounded to the type of W."""
    delta = torch.bmm(b_EoR.float(), a_ERi.float())
    return (weight_EoI.float() + scale * delta).to(weight_EoI.dtype)


def portable(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Trained tensors to keep: routers, and `experts.MATRIX_a` and `_b` with the scale in B: theirs is 1."""
    factor = f".{CHILD}."
    return {
        name.replace(factor, "."): tensor * scale if factor in name and name.endswith("_b") else tensor
        for name, tensor in tensors.items()
    }


def low_rank_experts(module: nn.Module, hidden_ND: Tensor, id_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """What transformers calls in place of an experts module's own forward; the same contract."""
    num_tokens, top_k = id_NK.shape
    low_rank = cast(LowRank, getattr(module, CHILD))
    weights: list[Tensor] = [getattr(module, name) for name in MATRICES]
    dtype = weights[0].dtype
    sorted_pairs = sort_pairs(id_NK, len(weights[0]))
    x_PD = hidden_ND.to(dtype).index_select(0, sorted_pairs.tokens)
    factors = [low_rank.factors(name, dtype) for name in MATRICES]
    with torch.autocast(hidden_ND.device.type, enabled=False):  # all types agree already
        outputs = []
        for expert, x_nD in enumerate(torch.split(x_PD, sorted_pairs.counts)):
            if not len(x_nD):
                continue
            both = [(w[expert], a[expert], b[expert]) for w, (a, b) in zip(weights, factors, strict=True)]
            inner_nI = cast(Any, module)._apply_gate(_product(x_nD, *both[0], low_rank.scale))
            outputs.append(_product(inner_nI, *both[1], low_rank.scale))
        y_PD = torch.cat(outputs)
    y_NKD = y_PD.index_select(0, sorted_pairs.places).view(num_tokens, top_k, -1)
    return torch.bmm(weight_NK.to(y_NKD.dtype).unsqueeze(1), y_NKD).squeeze(1).to(hidden_ND.dtype)


@dataclass(frozen=True)
class SortedPairs:
    """Pairs of token and expert in the order of experts, each expert's padded to a multiple of `GRANULE`."""

    tokens: Tensor
    """(P,) Which token each place reads; padding reads the first, and nobody its output."""
    places: Tensor
    """(M,) Where each pair is, in the order of tokens."""
    counts: list[int]
    """Places of each expert, 0 or a multiple of GRANULE."""


def sort_pairs(id_NK: Tensor, num_experts: int) -> SortedPairs:
    """Waits for the device once."""
    id_M = id_NK.flatten()
    order_M = id_M.argsort(stable=True)
    counts_E = torch.bincount(id_M, minlength=num_experts)
    padded_E = (counts_E + GRANULE - 1) // GRANULE * GRANULE
    shift_E = (padded_E.cumsum(0) - padded_E) - (counts_E.cumsum(0) - counts_E)
    place_M = torch.arange(len(id_M), device=id_M.device) + shift_E[id_M[order_M]]
    counts = padded_E.tolist()
    token_P = id_M.new_zeros(sum(counts)).scatter_(0, place_M, order_M // id_NK.shape[1])
    return SortedPairs(token_P, torch.empty_like(place_M).scatter_(0, order_M, place_M), counts)


def _product(x_ni: Tensor, weight_oi: Tensor, a_Ri: Tensor, b_oR: Tensor, scale: float) -> Tensor:
    """W x + scale B A x for each row."""
    return torch.addmm(
        functional.linear(x_ni, weight_oi), functional.linear(x_ni, a_Ri), b_oR.t(), alpha=scale
    )


def _experts(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        fused = all(isinstance(getattr(module, name, None), nn.Parameter) for name in MATRICES)
        if fused and hasattr(module, "has_gate"):
            plain = module.has_gate and module.is_concatenated
            if plain and not (module.has_bias or module.is_transposed or module.has_post_expert_norm):
                yield module
