"""Pre-gated MoE in plain PyTorch, written from the formulas of arXiv 2308.12066, section 4.1, and no more.

Shape letters: N tokens, D model width, I expert width, E experts, K per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class PlainGate:
    """One bias-free matrix (E, D); its K largest probabilities weight outputs, normalised or as they are."""

    matrix: Tensor
    top_k: int
    normalised: bool

    def select(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        weight_NK, id_NK = functional.linear(x_ND, self.matrix).float().softmax(-1).topk(self.top_k)
        return id_NK, weight_NK / weight_NK.sum(-1, keepdim=True) if self.normalised else weight_NK


PlainExpert = Callable[[Tensor], Tensor]
"""(N, D) to (N, D)."""


def plain_block(experts: Sequence[PlainExpert], x_ND: Tensor, id_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Sum over each token's experts of weight * expert(token), in ascending order of experts."""
    out_ND = torch.zeros_like(x_ND)
    for index, expert in enumerate(experts):
        token, place = torch.where(id_NK == index)
        out_ND.index_add_(0, token, expert(x_ND[token]) * weight_NK[token, place, None])
    return out_ND


def plain_pre_gated(
    gates: Sequence[PlainGate], experts: Sequence[Sequence[PlainExpert]], x: Sequence[Tensor], level: int
) -> list[Tensor]:
    """Of each block's input (N, D), its output: the gate of block j reads the input of block j - level."""
    chosen = [gate.select(x[j - level] if j >= level else x[j]) for j, gate in enumerate(gates)]
    return [plain_block(e, x_ND, *c) for e, x_ND, c in zip(experts, x, chosen, strict=True)]
