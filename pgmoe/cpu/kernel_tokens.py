"""Tokens and their experts on a CPU with AMX, by kernels of our own.

Shape letters: N tokens, K experts per token, D model width, I expert width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgmoe.cpu.kernels import BLOCK, MOST_CHOICES, available, kernels, padded
from pgmoe.layout import ExpertLayer

_ROWS = 1024
"""Choices that are computed in one go, where the pass has no more tokens than that."""


class KernelTokens:
    """See Tokens. Of some experts the first products run together, then the second ones.

    Each expert's result is, to the bit, what it is alone, and each token's what it is alone.
    """

    def __init__(self, layer: ExpertLayer, hidden: Tensor, ids_NK: Tensor) -> None:
        self._x_ND, self._ids_NK = hidden, ids_NK.contiguous()
        self._num_experts, self._width = layer.num_experts, layer.up_width // 2
        self._counts = kernels.count(self._ids_NK.data_ptr(), ids_NK.numel(), layer.num_experts)
        self.experts = [*self._counts]
        self.at_once = max(1, len(self.experts))
        self._most_rows = max(most_rows(layer, *ids_NK.shape), padded(max(self._counts.values(), default=0)))
        self._y_CD = hidden.new_empty(ids_NK.numel(), hidden.shape[1])
        self._scratch = hidden.new_empty(self._most_rows * row_elements(layer, hidden.shape[1]))

    @staticmethod
    def takes(layer: ExpertLayer, hidden: Tensor, ids_NK: Tensor) -> bool:
        """Whether these tokens (N, D) of these choices can be computed here."""
        return (
            hidden.dtype is torch.bfloat16
            and hidden.is_cpu
            and len(hidden) > 0
            and hidden.is_contiguous()
            and ids_NK.dtype is torch.int64
            and 0 < ids_NK.shape[1] <= MOST_CHOICES
            and suits(layer, hidden.shape[1])
            and available()
        )

    def apply(self, experts: Mapping[int, Mapping[str, Tensor]]) -> None:
        """See Tokens."""
        batch: list[tuple[int, int, int]] = []
        num_rows = 0
        for expert, weights in experts.items():
            rows = padded(self._counts[expert])
            if batch and num_rows + rows > self._most_rows:
                self._apply(batch)
                batch, num_rows = [], 0
            batch.append((expert, weights["up"].data_ptr(), weights["down"].data_ptr()))
            num_rows += rows
        self._apply(batch)

    def _apply(self, experts: list[tuple[int, int, int]]) -> None:
        (num_tokens, top_k), width = self._ids_NK.shape, self._x_ND.shape[1]
        kernels.apply_experts(
            experts,
            self._ids_NK.data_ptr(),
            self._x_ND.data_ptr(),
            self._y_CD.data_ptr(),
            self._scratch.data_ptr(),
            self._scratch.numel(),
            num_tokens,
            top_k,
            width,
            self._width,
            torch.get_num_threads(),
        )

    def weighted_sum(self, weights_NK: Tensor) -> Tensor:
        """See Tokens."""
        (num_tokens, top_k), out_ND = self._ids_NK.shape, self._x_ND.new_empty(self._x_ND.shape)
        if weights_NK.dtype is not torch.float32:
            weights_NK = weights_NK.float()
        weights_NK = weights_NK.contiguous()
        kernels.add_up(
            self._ids_NK.data_ptr(),
            weights_NK.data_ptr(),
            self._y_CD.data_ptr(),
            out_ND.data_ptr(),
            num_tokens,
            top_k,
            out_ND.shape[1],
            self._num_experts,
            torch.get_num_threads(),
        )
        return out_ND


def suits(layer: ExpertLayer, width: int) -> bool:
    """Whether its experts are what the kernels compute, of tokens of this width."""
    widths = layer.swiglu_widths
    return widths is not None and widths[0] == width and not (width % BLOCK or widths[1] % BLOCK)


def most_rows(layer: ExpertLayer, num_tokens: int, top_k: int) -> int:
    """Most rows that experts computed in one go have together, each one's rounded up to what is packed."""
    num_choices = num_tokens * top_k
    every = num_choices + min(num_choices, layer.num_experts) * (padded(1) - 1)
    return min(every, max(_ROWS, padded(num_tokens)))


def row_elements(layer: ExpertLayer, width: int) -> int:
    """Elements of memory for each of these rows, of tokens of this width."""
    return width + layer.up_width // 2 + layer.up_width
