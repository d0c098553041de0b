"""Tokens on their way through their experts of one layer, which come a few at a time and in any order.

Shape letters: N tokens, K experts per token, R rows (one for each token and expert that it uses), T rows of
one expert, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from pgmoe.cpu.kernel_tokens import KernelTokens
from pgmoe.experts.ffn import Weights, apply_ffn, project
from pgmoe.experts.grouping import TokenGroups
from pgmoe.layout import ExpertLayer


class Tokens(Protocol):
    """The result does not depend, to the bit, on how the experts come."""

    experts: list[int]
    """Those in use, ascending."""
    at_once: int
    """Most that `apply` takes in one call; fewer may come."""

    def apply(self, experts: Mapping[int, Weights]) -> None:
        """Compute these; each exactly once before `weighted_sum`."""
        ...

    def weighted_sum(self, weights_NK: Tensor) -> Tensor:
        """Of all experts' outputs -> (N, D): each product rounded to the tokens' type, added in ascending
        order."""
        ...


def tokens_of(layer: ExpertLayer, hidden: Tensor, top_k_index: Tensor, ids_NK: Tensor) -> Tokens:
    """Tokens (N, D) that chose top_k_index (N, K); ids_NK has the same on the host."""
    if KernelTokens.takes(layer, hidden, ids_NK):
        return KernelTokens(layer, hidden, ids_NK)
    if len(hidden) == 1:
        return LoneToken(layer, hidden, top_k_index, ids_NK)
    return ManyTokens(layer, hidden, ids_NK)


class ManyTokens:
    """See Tokens: an expert after another, each with its rows."""

    def __init__(self, layer: ExpertLayer, hidden: Tensor, ids_NK: Tensor) -> None:
        self._ffn = layer.ffn
        self._groups = TokenGroups.of(ids_NK, layer.num_experts, hidden.device)
        self.experts, self.at_once = self._groups.experts, 1
        x_RD = hidden[self._groups.tokens]
        self._y_RD = torch.empty_like(x_RD)
        self._x_of, self._y_of = self._groups.split(x_RD), self._groups.split(self._y_RD)

    def apply(self, experts: Mapping[int, Weights]) -> None:
        """See Tokens."""
        for expert, weights in experts.items():
            self._y_of[expert].copy_(apply_ffn(self._ffn, weights, self._x_of[expert]))

    def weighted_sum(self, weights_NK: Tensor) -> Tensor:
        """See Tokens."""
        return self._groups.add_up(self._y_RD, weights_NK)


class LoneToken:
    """See Tokens, for N = 1, with few operations: decoding does this in every layer.

    Activation and norm run over all K rows whenever some are new. A vectorised loop may round the last few
    elements of its range differently (float32 `silu` does, over rows without gaps), so a row must lie in the
    same range however the experts came.
    """

    def __init__(self, layer: ExpertLayer, x_1D: Tensor, top_k_index: Tensor, ids_NK: Tensor) -> None:
        (ids_K,) = ids_NK.tolist()
        self.experts = sorted(e for e in ids_K if e < layer.num_experts)
        self.at_once = max(1, len(self.experts))
        self._row_of = {e: row for row, e in enumerate(self.experts)}
        assert len(self._row_of) == len(self.experts), self.experts
        # On the device, or adding up would have to wait for the host.
        self._order_K = top_k_index[0].argsort()
        self._ffn = layer.ffn
        self._x_1D = x_1D
        self._up_KU = x_1D.new_zeros(len(self.experts), layer.up_width)
        self._y_KD = x_1D.new_zeros(len(self.experts), x_1D.shape[1])

    def apply(self, experts: Mapping[int, Weights]) -> None:
        """See Tokens."""
        up_rows, y_rows = torch.split(self._up_KU, 1), torch.split(self._y_KD, 1)
        for expert, weights in experts.items():
            project(self._ffn, weights, "up", self._x_1D, up_rows[self._row_of[expert]])
        h_rows = torch.split(self._ffn.activation(self._up_KU), 1)
        for expert, weights in experts.items():
            row = self._row_of[expert]
            project(self._ffn, weights, "down", h_rows[row], y_rows[row])

    def weighted_sum(self, weights_NK: Tensor) -> Tensor:
        """See Tokens."""
        weights_K = weights_NK[0, self._order_K[: len(self.experts)]]
        y_KD = self._ffn.finish(self._y_KD) * weights_K[:, None]
        out_1D = torch.zeros_like(self._x_1D)
        for y_D in y_KD.to(out_1D.dtype).unbind():
            out_1D += y_D
        return out_1D
