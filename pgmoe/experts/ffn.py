"""One expert on its tokens: two matrix products and what lies between.

Shape letters: T tokens of one expert, D model width, U outputs of the first product.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.cpu import products
from pgmoe.layout import ExpertFFN

Weights = Mapping[str, Tensor]
"""An expert's tensors by name: views of its slot, or expanded from it when asked for, one at a time."""
ROWS = 16
"""On a CPU, oneDNN compiles a product of 16-bit numbers anew for every number of rows, which takes nearly as
long as multiplying 100 of them by an expert."""


def apply_ffn(ffn: ExpertFFN, weights: Weights, x_TD: Tensor) -> Tensor:
    """(T, D) -> (T, D). See ExpertFFN for the formula."""
    up_TU = _projected(ffn, weights, "up", x_TD)
    return ffn.finish(_projected(ffn, weights, "down", ffn.activation(up_TU)))


def _projected(ffn: ExpertFFN, weights: Weights, name: str, x_Ta: Tensor) -> Tensor:
    weight = weights[name]
    out_Tb = x_Ta.new_empty(len(x_Ta), weight.shape[1 if ffn.transposed else 0])
    project(ffn, weights, name, x_Ta, out_Tb)
    return out_Tb


def project(ffn: ExpertFFN, weights: Weights, name: str, x_Ta: Tensor, out_Tb: Tensor) -> None:
    """out = x times a weight (b, a), or (a, b) where transposed, plus a bias (b,) if there is one."""
    weight = weights[name]
    if not ffn.transposed and products.takes(x_Ta, weight):
        products.multiply(x_Ta, weight, out_Tb)
    else:
        _multiply(x_Ta, weight, ffn.transposed, out_Tb)
    if (bias := weights.get(name + "_bias")) is not None:
        out_Tb += bias


def _multiply(x_Ta: Tensor, weight: Tensor, transposed: bool, out_Tb: Tensor) -> None:
    """By torch.

    On a CPU the weight stands on the left: the operand on the right is rearranged for each product, and that
    takes longer than multiplying it by a few tokens. With 128 tokens it was up to twice as fast, in bfloat16
    with AMX (by hand, one core). Other types keep the order in which they sum.
    """
    if transposed or x_Ta.device.type != "cpu":
        torch.mm(x_Ta, weight if transposed else weight.t(), out=out_Tb)
    elif len(x_Ta) == 1:  # reading the weight is all it costs, and `mv` reads fastest
        torch.mv(weight, x_Ta[0], out=out_Tb[0])
    elif x_Ta.dtype == torch.bfloat16:
        out_Tb.copy_((weight @ _round_up(x_Ta).t()).t()[: len(x_Ta)])
    else:
        out_Tb.copy_(functional.linear(_round_up(x_Ta), weight)[: len(x_Ta)])


def _round_up(x_Ta: Tensor) -> Tensor:
    """With rows of zeros to a multiple of ROWS, where a prompt gives every expert another number of them."""
    num_tokens = len(x_Ta)
    if num_tokens <= ROWS or x_Ta.dtype.itemsize != 2:
        return x_Ta
    return functional.pad(x_Ta, (0, 0, 0, -num_tokens % ROWS))
