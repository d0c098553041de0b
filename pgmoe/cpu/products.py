"""Products of bfloat16 matrices on CPUs with AMX, by a kernel of our own (`amx.h`).

torch's library rearranges weights for every product, and generates code for each number of tokens; for few
tokens both take longer than the product. The kernel takes weights as they lie in a checkpoint and reads them
about as fast as the memory gives them.

Shape letters: K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgmoe.cpu.kernels import BLOCK, SLAB, address, available, kernels, padded


def takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `multiply` takes these."""
    num_inputs = weight.shape[-1]
    return (
        weight.ndim == 2
        and x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and weight.is_cpu
        and x.shape[-1:] == (num_inputs,)
        and x.numel() > 0
        and num_inputs % BLOCK == 0
        and x.is_contiguous()
        and weight.is_contiguous()
        and (bias is None or _is_bias(bias, len(weight)))
        and available()
    )


def _is_bias(bias: Tensor, num_outputs: int) -> bool:
    of_each = bias.shape == (num_outputs,) and bias.is_contiguous()
    return of_each and bias.dtype is torch.bfloat16 and bias.is_cpu


def multiply(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """out (..., N) = x (..., K) times the transpose of weight (N, K), plus bias (N,); all contiguous.

    Summed in float32, and rounded once.

    What a token gets depends on its row and the weights alone, to the bit.
    """
    num_outputs, num_inputs = weight.shape
    num_tokens = x.numel() // num_inputs
    scratch = x.new_empty(packed_rows(num_tokens, num_outputs) * num_inputs)
    kernels.multiply(
        x.data_ptr(),
        weight.data_ptr(),
        address(bias),
        out.data_ptr(),
        scratch.data_ptr(),
        num_tokens,
        num_inputs,
        num_outputs,
        torch.get_num_threads(),
    )


def packed_rows(num_tokens: int, num_outputs: int) -> int:
    """Rows of inputs that a product packs: its tokens', and those of weights that fill no block."""
    return padded(min(num_tokens, SLAB)) + (BLOCK if num_outputs % BLOCK else 0)
