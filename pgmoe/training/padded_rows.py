"""Experts that are modules of their own, computed in a few sizes: oneDNN compiles a product for each.

On a CPU that takes longer than the product, and an expert has another number of tokens every time. Shape
letters: T tokens of an expert, D model width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pgmoe.models.mixed import mixed
from pgmoe.models.moe_blocks import moe_blocks

GRANULE = 64
"""Rows are padded with zeros to a multiple of it."""


class PaddedRows(nn.Module):
    """Mixed into an expert's class: (T, D) to (T, D), in padded rows where they are on a CPU."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """See the class."""
        if x_TD.device.type != "cpu":
            return self._inner(x_TD)
        num_rows = len(x_TD)
        return self._inner(functional.pad(x_TD, (0, 0, 0, -num_rows % GRANULE)))[:num_rows]

    def _inner(self, x_TD: Tensor) -> Tensor:
        y_TD: Tensor = super().forward(x_TD)
        return y_TD


def pad_rows(model: nn.Module) -> int:
    """Have all experts that are modules of their own (Switch, NLLB-MoE) compute padded rows; count them.

    Changes their classes, once. Experts whose weights are stacked are left as they are.
    """
    num_experts = 0
    for stack in moe_blocks(model).values():
        for block in stack:
            experts = model.get_submodule(block.name).get_submodule("experts")
            for expert in experts.children() if isinstance(experts, nn.ModuleDict | nn.ModuleList) else ():
                kind: Any = type(expert)
                expert.__class__ = kind if issubclass(kind, PaddedRows) else mixed("Padded", PaddedRows, kind)
                num_experts += 1
    return num_experts
