"""Products by the kernel against float64, on fresh random input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pgmoe.cpu import products
from pgmoe.cpu.kernels import MOST_TOKENS, available
from pgmoe.models.linear import KernelLinear, use_kernel

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")


def draw(*shape: int, offset: int = 0) -> torch.Tensor:
    """Random numbers that start so many elements after an aligned address."""
    flat = torch.randn(offset + torch.Size(shape).numel()).to(torch.bfloat16)
    return flat[offset:].view(shape)


def multiplied(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.full((*x.shape[:-1], len(weight)), torch.nan, dtype=x.dtype)
    products.multiply(x, weight, out)
    return out


@pytest.mark.parametrize("turn", range(40))
def test_equals_a_product_in_float64(turn: int) -> None:
    num_tokens = int(torch.randint(1, MOST_TOKENS + 1, ()))
    num_inputs, num_outputs = (32 * int(torch.randint(1, 20, ())) for _ in range(2))
    x = draw(num_tokens, num_inputs, offset=turn % 3)
    weight = draw(num_outputs, num_inputs, offset=turn % 5)
    assert products.takes(x, weight)
    exact = x.double() @ weight.double().t()
    # Half a unit in the last of bfloat16's 8 places for rounding, a little for summing in float32.
    torch.testing.assert_close(multiplied(x, weight).double(), exact, rtol=2**-8, atol=1e-4 * num_inputs**0.5)


def test_a_token_gets_the_same_whatever_runs_beside_it() -> None:
    x, weight = draw(MOST_TOKENS, 96), draw(160, 96)
    together = multiplied(x, weight)
    for first in range(0, MOST_TOKENS, 7):
        for count in (1, 2, 17, 33):
            assert torch.equal(multiplied(x[first : first + count], weight), together[first : first + count])


def test_threads_change_nothing() -> None:
    x, weight, threads = draw(20, 576), draw(1024, 576), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(multiplied(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_not_a_number_stays_so() -> None:
    x, weight = draw(3, 64), draw(64, 64)
    x[1, 5] = torch.nan
    x[2, 7] = torch.inf
    out = multiplied(x, weight)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (draw(2, 64).float(), draw(64, 64).float()),
        (draw(2, 64), draw(64, 64).float()),
        (draw(2, 48), draw(64, 48)),
        (draw(2, 64), draw(40, 64)),
        (draw(2, 64), draw(64, 64).t()),
        (draw(64, 2).t(), draw(64, 64)),
        (draw(MOST_TOKENS + 1, 64), draw(64, 64)),
        (draw(0, 64), draw(64, 64)),
        (draw(2, 64).to("meta"), draw(64, 64).to("meta")),
    ],
    ids=["float32", "types", "inputs", "outputs", "weight's strides", "strides", "tokens", "none", "meta"],
)
def test_other_operands_are_left_to_torch(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert not products.takes(x, weight)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_take_it(bias: bool) -> None:
    plain = nn.Linear(96, 64, bias=bias).to(torch.bfloat16)
    model = nn.Sequential(nn.Linear(96, 40).to(torch.bfloat16), plain)
    use_kernel(model)
    assert [type(layer) for layer in model] == [nn.Linear, KernelLinear]
    with torch.inference_mode():
        for shape in ((96,), (1, 5, 96), (MOST_TOKENS + 1, 96)):
            x = draw(*shape)
            expected = functional.linear(x, plain.weight, plain.bias)
            torch.testing.assert_close(plain(x), expected, rtol=2**-6, atol=2**-7)


def test_a_bias_is_added_before_rounding() -> None:
    x, weight, bias = draw(9, 64), draw(96, 64), draw(96) * 100
    out = torch.empty(9, 96, dtype=torch.bfloat16)
    products.multiply(x, weight, out, bias)
    exact = x.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-3)
