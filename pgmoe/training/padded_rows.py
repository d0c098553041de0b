"""Experts that are modules of their own, computed in a few sizes: oneDNN compiles a product for each.

On a CPU that takes longer than the product, and an expert has another number of tokens every time. Shape
letters: T tokens of an expert, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

GRANULE = 64
"""Rows are padded with zeros to a multiple of it."""


def pad_rows(model: nn.Module) -> None:
    """Have every expert in a `ModuleDict` of experts compute padded rows wherever they are on a CPU."""
    for name, module in model.named_modules():
        if name.endswith("experts") and isinstance(module, nn.ModuleDict):
            for expert in module.values():
                expert.forward = partial(_padded, expert.forward)


def _padded(forward: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
    if x_TD.device.type != "cpu":
        return forward(x_TD)
    num_rows = len(x_TD)
    return forward(functional.pad(x_TD, (0, 0, 0, -num_rows % GRANULE)))[:num_rows]
