"""Dense layers whose products of few tokens are computed as experts' are."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from pgmoe.cpu import products
from pgmoe.cpu.kernels import reason

_logger = logging.getLogger(__name__)


class KernelLinear(nn.Linear):
    """A linear layer that takes our kernel where it can; where gradients are wanted it cannot."""

    def forward(self, x: Tensor) -> Tensor:
        """See nn.Linear."""
        if torch.is_grad_enabled() or not products.takes(x, self.weight, self.bias):
            return super().forward(x)
        out = x.new_empty(*x.shape[:-1], self.out_features)
        products.multiply(x, self.weight, out, self.bias)
        return out


def use_kernel(model: nn.Module) -> None:
    """Have all linear layers of a model take the kernel where they can. For models that only answer."""
    if (why := reason()) is not None:
        _logger.info("products on the CPU are torch's: the kernels for them are missing, %s", why)
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = KernelLinear
