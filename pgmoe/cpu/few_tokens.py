"""Few tokens and their experts on a CPU with AMX, by kernels of our own.

Shape letters: N tokens, K experts per token, D model width, I expert width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgmoe.cpu.kernels import MOST_TOKENS, STEP, available, kernels, padded
from pgmoe.layout import ExpertLayer

_MOST_CHOICES = 64
"""Experts of one token; as in `_kernels.c`."""


class FewTokens:
    """See Tokens. Of one batch of experts the first products run together, then the second ones.

    Each expert's result is, to the bit, what it is alone, and each token's what it is alone.
    """

    def __init__(self, layer: ExpertLayer, hidden: Tensor, ids_NK: Tensor) -> None:
        self._x_ND, self._ids_NK = hidden, ids_NK.contiguous()
        self._num_experts, self._width = layer.num_experts, layer.up_width // 2
        self.experts = sorted(e for e in {*ids_NK.flatten().tolist()} if e < layer.num_experts)
        self.at_once = max(1, len(self.experts))
        self._y_CD = hidden.new_empty(ids_NK.numel(), hidden.shape[1])
        self._scratch = hidden.new_empty(scratch_elements(layer, ids_NK.numel(), hidden.shape[1]))

    @staticmethod
    def takes(layer: ExpertLayer, hidden: Tensor, top_k: int) -> bool:
        """Whether these tokens (N, D) of so many choices each can be computed here."""
        return (
            hidden.dtype is torch.bfloat16
            and hidden.device.type == "cpu"
            and 0 < len(hidden) <= MOST_TOKENS
            and top_k <= _MOST_CHOICES
            and hidden.is_contiguous()
            and suits(layer)
            and available()
        )

    def apply(self, experts: Mapping[int, Mapping[str, Tensor]]) -> None:
        """See Tokens."""
        (num_tokens, top_k), width = self._ids_NK.shape, self._x_ND.shape[1]
        kernels.apply_experts(
            [(e, weights["up"].data_ptr(), weights["down"].data_ptr()) for e, weights in experts.items()],
            self._ids_NK.data_ptr(),
            self._x_ND.data_ptr(),
            self._y_CD.data_ptr(),
            self._scratch.data_ptr(),
            num_tokens,
            top_k,
            width,
            self._width,
            torch.get_num_threads(),
        )

    def weighted_sum(self, weights_NK: Tensor) -> Tensor:
        """See Tokens."""
        (num_tokens, top_k), out_ND = self._ids_NK.shape, torch.empty_like(self._x_ND)
        weights_NK = weights_NK.float().contiguous()
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


def suits(layer: ExpertLayer) -> bool:
    """Whether its experts are what the kernels compute: plain bfloat16 SwiGLU."""
    plain = layer.encoding == "plain" and layer.dtype is torch.bfloat16 and layer.ffn.swiglu
    shapes = {region.name: region.shape for region in layer.layout.regions}
    return plain and shapes.keys() == {"up", "down"} and not any(n % STEP for s in shapes.values() for n in s)


def scratch_elements(layer: ExpertLayer, num_choices: int, width: int) -> int:
    """Most elements of memory that experts of so many choices (N * K) need, of tokens of this width."""
    num_rows = num_choices + min(num_choices, layer.num_experts) * (padded(1) - 1)
    return num_rows * (width + layer.up_width // 2) + num_choices * layer.up_width
