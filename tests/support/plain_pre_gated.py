"""Pre-gated MoE in plain PyTorch, written from the formulas of arXiv 2308.12066, section 4.1, and no more.

Shape letters: B batch, S sequence, N = B * S tokens, D model width, I expert width, E experts, K per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class PlainGate:
    """One bias-free matrix; its K largest probabilities weight the experts' outputs, normalised or as they are."""

    weight_ED: Tensor
    top_k: int
    normalised: bool

    def select(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        weight_NK, id_NK = functional.linear(hidden_ND, self.weight_ED).float().softmax(-1).topk(self.top_k)
        if self.normalised:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        return id_NK, weight_NK


@dataclass
class PlainExperts:
    """Gated feed-forward networks: silu(gate) * up, then down."""

    gate_up_EID: Tensor
    down_EDI: Tensor

    def compute(self, hidden_ND: Tensor, id_NK: Tensor, weight_NK: Tensor) -> Tensor:
        out_ND = torch.zeros_like(hidden_ND)
        for expert in range(len(self.down_EDI)):
            token, place = torch.where(id_NK == expert)
            gate, up = functional.linear(hidden_ND[token], self.gate_up_EID[expert]).chunk(2, -1)
            given = functional.linear(functional.silu(gate) * up, self.down_EDI[expert])
            out_ND.index_add_(0, token, given * weight_NK[token, place, None])
        return out_ND


def plain_pre_gated(
    gates: Sequence[PlainGate], experts: Sequence[PlainExperts], hidden: Sequence[Tensor], level: int
) -> list[Tensor]:
    """Each block's expert output (N, D) from each block's expert input (N, D): gate j reads block j - level."""
    early = [hidden[max(j - level, 0)] if j >= level else hidden[j] for j in range(len(gates))]
    chosen = [gate.select(read) for gate, read in zip(gates, early, strict=True)]
    return [e.compute(h, *c) for e, h, c in zip(experts, hidden, chosen, strict=True)]
