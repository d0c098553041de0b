"""Routers whose product, softmax and choice are one kernel of our own (`cpu/route.h`).

Of most families a router's weights are the softmax over all experts, of the chosen ones, or that over these
alone: it is tried out which. Shape letters: T tokens, E experts, K of each token, D model width.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.cpu import products
from pgmoe.cpu.kernels import MOST_EXPERTS, address, kernels
from pgmoe.models import linear
from pgmoe.models.mixed import mixed, unmixed
from pgmoe.models.pre_gate import PreGatedRouter, swap_family

_logger = logging.getLogger(__name__)
_TRIES = 64


class _KernelRouter(nn.Module):
    """Mixed into a family's router, whose own forward does what the kernel cannot."""

    weight: Tensor
    top_k: int
    normalises: bool
    weights_dtype: torch.dtype

    def forward(self, hidden_states: Tensor) -> Any:
        """(..., D) to logits (T, E), weights (T, K) and ids (T, K) int64, most probable first."""
        bias = getattr(self, "bias", None)
        if torch.is_grad_enabled() or not products.takes(hidden_states, self.weight, bias):
            return super().forward(hidden_states)
        return _route(hidden_states, self.weight, bias, self.top_k, self.normalises, self.weights_dtype)


def use_kernel(router: nn.Module) -> None:
    """Have it take the kernel, where a trial shows that it chooses the same; any other module stays."""
    weight, top_k = getattr(router, "weight", None), getattr(router, "top_k", None)
    if isinstance(router, _KernelRouter) or not isinstance(weight, Tensor) or not isinstance(top_k, int):
        return
    takes_one = len(inspect.signature(unmixed(router).forward).parameters) == 2  # self and tokens
    if not takes_one or weight.ndim != 2 or not top_k <= len(weight) <= MOST_EXPERTS:
        return
    try:
        _swap(router, weight, top_k)
    except Exception as error:  # whatever it takes: it is no plain router
        _logger.debug("%s is no plain router: %r", type(router).__name__, error)


@torch.inference_mode()
def _swap(router: Any, weight: Tensor, top_k: int) -> None:
    """Raises where it chooses otherwise, or anything that its forward does."""
    x_TD, bias = _tries(weight.shape[1]), getattr(router, "bias", None)
    if not products.takes(x_TD, weight, bias):
        raise ValueError("the kernel does not take its matrix")
    expected = router.ask(x_TD) if isinstance(router, PreGatedRouter) else router(x_TD)
    for normalises in (True, False):
        given = _route(x_TD, weight, bias, top_k, normalises, expected[1].dtype)
        if _same(given, expected):
            router.normalises, router.weights_dtype = normalises, expected[1].dtype
            linear.forget_kernel_of(router)
            swap_family(router, lambda family: mixed("Kernel", _KernelRouter, family))
            return
    raise ValueError("the kernel chooses otherwise")


def _tries(width: int) -> Tensor:
    """Tokens (T, D) of all sizes, and one of zeros, whose experts are equally likely if there is no bias."""
    random = torch.Generator().manual_seed(0)
    sizes_T1 = torch.logspace(-3, 1, _TRIES)[:, None]
    sizes_T1[0] = 0
    return (torch.randn(_TRIES, width, generator=random) * sizes_T1).bfloat16()


def _route(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, top_k: int, normalises: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    num_experts, num_inputs = weight.shape
    num_tokens = hidden.numel() // num_inputs
    logits_TE = hidden.new_empty(num_tokens, num_experts)
    weights_TK = hidden.new_empty(num_tokens, top_k, dtype=torch.float32)
    ids_TK = hidden.new_empty(num_tokens, top_k, dtype=torch.int64)
    scratch = hidden.new_empty(products.packed_rows(num_tokens, num_experts) * num_inputs)
    kernels.route(
        hidden.data_ptr(),
        weight.data_ptr(),
        address(bias),
        logits_TE.data_ptr(),
        scratch.data_ptr(),
        num_tokens,
        num_inputs,
        num_experts,
        weights_TK.data_ptr(),
        ids_TK.data_ptr(),
        top_k,
        normalises,
        torch.get_num_threads(),
    )
    return logits_TE, weights_TK if dtype is torch.float32 else weights_TK.to(dtype), ids_TK


def _same(given: tuple[Tensor, Tensor, Tensor], expected: Any) -> bool:
    """Experts that are as likely, and weights but for rounding.

    They may be others where two are equal, or where a weight is next to nothing.
    """
    logits_TE, weights_TK, ids_TK = expected
    counts_TK = weights_TK > 1e-30
    chosen = [logits_TE.float().gather(1, ids)[counts_TK] for ids in (given[2], ids_TK)]
    step = torch.finfo(weights_TK.dtype).eps
    return (
        torch.equal(given[0].float(), logits_TE.float())
        and torch.equal(*chosen)
        and torch.allclose(given[1].float(), weights_TK.float(), rtol=max(2 * step, 1e-5), atol=1e-30)
    )
