"""Products with a model's dense matrices, computed as experts' are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmoe.cpu import products


class KernelLinear(nn.Linear):
    """A linear layer that takes our kernel where it can; where gradients are wanted it cannot."""

    def forward(self, x: Tensor) -> Tensor:
        """See nn.Linear."""
        return _product(x, self.weight, self.bias)


class KernelMatrix(nn.Parameter):
    """A matrix with which a module calls `functional.linear` itself, as most families' routers do."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of `func`, of which this is an argument."""
        with torch._C.DisableTorchFunctionSubclass():
            return (_product if func is functional.linear else func)(*args, **(kwargs or {}))


def use_kernel(layer: nn.Linear) -> None:
    """Have it take the kernel; of a subclass of nn.Linear nothing is known, so it stays."""
    if type(layer) is nn.Linear:
        layer.__class__ = KernelLinear


def use_kernel_of(module: nn.Module) -> None:
    """The same of a module's own `weight`, if it has a matrix of that name."""
    weight = module._parameters.get("weight")
    if weight is not None and weight.ndim == 2:
        module._parameters["weight"] = KernelMatrix(weight.data, requires_grad=weight.requires_grad)


def forget_kernel_of(module: nn.Module) -> None:
    """Make that matrix an ordinary one again: whatever asks it for anything, its shape even, takes longer."""
    weight = module._parameters.get("weight")
    if isinstance(weight, KernelMatrix):
        plain = nn.Parameter(weight.data.as_subclass(Tensor), requires_grad=weight.requires_grad)
        module._parameters["weight"] = plain


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled() or not products.takes(input, weight, bias):
        return functional.linear(input, weight, bias)
    out = input.new_empty(*input.shape[:-1], len(weight))
    products.multiply(input, weight, out, bias)
    return out
