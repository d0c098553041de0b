"""Root mean square norms that are computed by a kernel of our own (Zhang and Sennrich, arXiv 1910.07467).

torch makes six passes over the tokens of each, in float32.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.cpu.kernels import SIDE, address, kernels
from pgmoe.models.mixed import mixed
from pgmoe.models.stand_in import is_hooked

_logger = logging.getLogger(__name__)


class _KernelNorm(nn.Module):
    """Mixed into a family's norm, whose own forward does what the kernel cannot."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm of each row of hidden_states (..., D), which is multiplied by the weight (D)."""
        if torch.is_grad_enabled() or not _takes(hidden_states, self.weight):
            given: Tensor = super().forward(hidden_states)
            return given
        out = hidden_states.new_empty(hidden_states.shape)
        _normalise(hidden_states, None, None, self, out)
        return out


def add_and_normalise(x: Tensor, added: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The sum of both (..., D) and its norm (T, D)."""
    alike = x.shape == added.shape and x.dtype is added.dtype and x.device == added.device
    plain = isinstance(norm, _KernelNorm) and not is_hooked(norm)
    if not (alike and plain and _takes(added, norm.weight)):  # type: ignore[arg-type]
        total = x + added
        return total, norm(total).reshape(-1, total.shape[-1])
    total = added.new_empty(added.shape)
    normal_TD = added.new_empty(added.numel() // added.shape[-1], added.shape[-1])
    _normalise(x.contiguous(), added, total, norm, normal_TD)  # type: ignore[arg-type]
    return total, normal_TD


def use_kernel(norm: nn.Module) -> None:
    """Have a norm take the kernel, where a trial shows that it computes the same; any other module stays."""
    epsilon = getattr(norm, "variance_epsilon", None)
    if isinstance(norm, _KernelNorm) or not isinstance(epsilon, float):
        return
    kind: Any = type(norm)
    takes_one = [*inspect.signature(kind.forward).parameters] == ["self", "hidden_states"]
    if takes_one and [name for name, _ in norm.named_parameters()] == ["weight"] and _is_plain(norm, epsilon):
        norm.__class__ = mixed("Kernel", _KernelNorm, kind)


def is_kernel_norm(norm: nn.Module) -> bool:
    """Whether it has taken the kernel, for weights that the kernel takes."""
    weight = getattr(norm, "weight", None)
    return isinstance(norm, _KernelNorm) and isinstance(weight, Tensor) and _takes(weight, weight)


def _normalise(x: Tensor, added: Tensor | None, total: Tensor | None, norm: _KernelNorm, out: Tensor) -> None:
    """The norm of x, or of the sum of both, which goes to `total`; all of them contiguous."""
    width = x.shape[-1]
    kernels.normalise(
        x.data_ptr(),
        address(added),
        address(total),
        norm.weight.data_ptr(),
        out.data_ptr(),
        x.numel() // width,
        width,
        norm.variance_epsilon,
        torch.get_num_threads(),
    )


def _takes(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and weight.is_cpu
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
    if weight.ndim != 1:
        return False
    rows = [size * torch.linspace(-1, end, len(weight)).sin() for size, end in ((1, 2), (-30, 3), (1e-3, 7))]
    x_1ND = torch.stack(rows)[None].to(weight.device, weight.dtype)
    wide_1ND = x_1ND.float()
    inverse_1N1 = torch.rsqrt(wide_1ND.pow(2).mean(-1, keepdim=True) + epsilon)
    expected_1ND = weight * (wide_1ND * inverse_1N1).to(weight.dtype)
    try:
        return torch.equal(norm(x_1ND), expected_1ND) and torch.equal(norm(x_1ND[0]), expected_1ND[0])
    except Exception as error:  # whatever it takes: it is no plain norm
        _logger.debug("%s is no plain norm: %r", type(norm).__name__, error)
        return False
