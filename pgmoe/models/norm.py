"""Root mean square norms that are computed by a kernel of our own (Zhang and Sennrich, arXiv 1910.07467).

torch makes six passes over the tokens of each, in float32.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.cpu.kernels import SIDE, kernels


class _KernelNorm(nn.Module):
    """Mixed into a family's norm, whose own forward does what the kernel cannot."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each row of x (..., D), which is multiplied by the weight (D)."""
        if torch.is_grad_enabled() or not _takes(x, self.weight):
            given: Tensor = super().forward(x)
            return given
        out, width = torch.empty_like(x), x.shape[-1]
        kernels.normalise(
            x.data_ptr(),
            self.weight.data_ptr(),
            out.data_ptr(),
            x.numel() // width,
            width,
            self.variance_epsilon,
            torch.get_num_threads(),
        )
        return out


def use_kernel(norm: nn.Module) -> None:
    """Have a norm take the kernel, where a trial shows that it computes the same; any other module stays."""
    epsilon = getattr(norm, "variance_epsilon", None)
    if isinstance(norm, _KernelNorm) or not isinstance(epsilon, float):
        return
    if [name for name, _ in norm.named_parameters()] == ["weight"] and _is_plain(norm, epsilon):
        kind: Any = type(norm)
        norm.__class__ = _kernel_class(kind)


def _takes(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.shape[-1:] == weight.shape
        and x.numel() > 0
        and len(weight) % SIDE == 0
    )


@torch.inference_mode()
def _is_plain(norm: nn.Module, epsilon: float) -> bool:
    """Whether weight * (x / sqrt(mean(x^2) + epsilon)) is what it does to a row: it is tried out."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    if len(inspect.signature(norm.forward).parameters) != 1 or weight.ndim != 1:
        return False
    row_D = torch.linspace(-1, 2, len(weight)).sin()
    x_ND = torch.stack([size * row_D for size in (1, -30, 1e-3)]).to(weight.device, weight.dtype)
    wide_ND = x_ND.float()
    inverse_N1 = torch.rsqrt(wide_ND.pow(2).mean(-1, keepdim=True) + epsilon)
    return torch.equal(norm(x_ND), weight * (wide_ND * inverse_N1).to(weight.dtype))


@cache
def _kernel_class(norm: Any) -> Any:
    """A subclass, so that transformers' hooks on norms of this class still find it."""
    return type(f"Kernel{norm.__name__}", (_KernelNorm, norm), {"__module__": norm.__module__})
