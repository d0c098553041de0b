"""The seam between transformers' models and our experts: an MoE layer calls the object it was given.

Families on transformers' experts interface reach it through one registered function; Switch and NLLB-MoE
have sparse blocks of our own that call it themselves.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

EXPERTS_IMPLEMENTATION = "pgmoe"


class RoutedExperts(Protocol):
    """The routed experts of one MoE layer, wherever their weights are."""

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum over each token's experts of weight * expert(token).

        hidden (N, D); top_k_index (N, k) int64, distinct for each token, entries >= the number of experts are
        skipped;
        top_k_weights (N, k). Returns (N, D) in hidden's dtype. Experts are added in ascending order,
        each rounded to that dtype, as transformers' eager implementation does.
        """
        ...


def experts_forward(module: nn.Module, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls in place of an experts module's own forward."""
    routed = cast(RoutedExperts, module.routed_experts)
    return routed(hidden, top_k_index, top_k_weights)


def register() -> None:
    """Make the experts implementation known to transformers. Doing it again changes nothing."""
    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, experts_forward)
