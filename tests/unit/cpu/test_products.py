"""Products by the kernel against float64, on fresh random input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pgmoe.cpu import kernels, products
from pgmoe.cpu.kernels import SLAB, available
from pgmoe.models.kernels import use_kernels
from pgmoe.models.linear import KernelLinear, KernelMatrix, use_kernel, use_kernel_of
from tests.support.fresh import fresh_seed

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(fresh_seed())


def draw(*shape: int, offset: int = 0) -> torch.Tensor:
    """Random numbers that start so many elements after an aligned address."""
    flat = torch.randn(offset + torch.Size(shape).numel()).to(torch.bfloat16)
    return flat[offset:].view(shape)


def multiplied(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product; nothing around it may be written to."""
    shape = (*x.shape[:-1], len(weight))
    around = torch.full((torch.Size(shape).numel() + 128,), 7, dtype=x.dtype)
    out = around[64:-64].view(shape)
    products.multiply(x, weight, out, bias)
    assert (around[:64] == 7).all()
    assert (around[-64:] == 7).all()
    return out


@pytest.mark.parametrize("turn", range(40))
def test_equals_a_product_in_float64(turn: int) -> None:
    num_tokens = int(torch.randint(1, (64, 3 * SLAB)[turn % 4 == 3], ()))
    num_inputs, num_outputs = 32 * int(torch.randint(1, 20, ())), int(torch.randint(1, 600, ()))
    if turn % 2:
        num_outputs = -(-num_outputs // 32) * 32
    x = draw(num_tokens, num_inputs, offset=turn % 3)
    weight = draw(num_outputs, num_inputs, offset=turn % 5)
    assert products.takes(x, weight)
    exact = x.double() @ weight.double().t()
    # Half a unit in the last of bfloat16's 8 places for rounding, a little for summing in float32.
    torch.testing.assert_close(multiplied(x, weight).double(), exact, rtol=2**-8, atol=1e-4 * num_inputs**0.5)


def test_a_token_gets_the_same_whatever_runs_beside_it() -> None:
    x, weight = draw(SLAB + 40, 96), draw(170, 96)
    together = multiplied(x, weight)
    for first in range(0, len(x), 7):
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


OTHERS = {
    "float32": lambda: (draw(2, 64).float(), draw(64, 64).float()),
    "types": lambda: (draw(2, 64), draw(64, 64).float()),
    "inputs": lambda: (draw(2, 48), draw(64, 48)),
    "widths": lambda: (draw(2, 128), draw(64, 64)),
    "a number": lambda: (draw(1)[0], draw(64, 64)),
    "weight's strides": lambda: (draw(2, 64), draw(64, 64).t()),
    "strides": lambda: (draw(64, 2).t(), draw(64, 64)),
    "one row of weights": lambda: (draw(2, 64), draw(64)),
    "none": lambda: (draw(0, 64), draw(64, 64)),
    "meta": lambda: (draw(2, 64).to("meta"), draw(64, 64).to("meta")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_operands_are_left_to_torch(what: str) -> None:
    x, weight = OTHERS[what]()
    assert not products.takes(x, weight)


def test_a_layer_that_was_changed_meanwhile_is_left_to_torch() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    use_kernel(layer)
    assert type(layer) is KernelLinear
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(draw(2, 128))
        x = draw(2, 64).float()
        assert torch.equal(layer.float()(x), functional.linear(x, layer.weight, layer.bias))


def test_gradients_come_from_torch() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    use_kernel(layer)
    layer(draw(2, 64)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_take_it(bias: bool) -> None:
    plain = nn.Linear(96, 64, bias=bias).to(torch.bfloat16)
    model = nn.Sequential(nn.Linear(96, 40).to(torch.bfloat16), plain)
    use_kernels(model)
    assert [type(layer) for layer in model] == [KernelLinear, KernelLinear]
    with torch.inference_mode():
        for shape in ((96,), (1, 5, 96), (SLAB + 1, 96)):
            x = draw(*shape)
            assert model[0](x).shape == (*shape[:-1], 40)
            expected = functional.linear(x, plain.weight, plain.bias)
            torch.testing.assert_close(plain(x), expected, rtol=2**-6, atol=2**-7)


class Router(nn.Module):
    """As most families' are."""

    def __init__(self, num_experts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(num_experts, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight).float().softmax(-1) * self.weight.float().mean()


def test_a_matrix_that_is_multiplied_without_a_layer_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    block = nn.Module()
    block.gate = router = Router(8, 64)
    x = draw(5, 64)
    with torch.inference_mode():
        expected = router(x)
    use_kernels(block)
    assert type(router.weight) is KernelMatrix
    assert [*block.state_dict()] == ["gate.weight"]
    calls = []
    multiply = products.multiply
    monkeypatch.setattr(products, "multiply", lambda *given: (calls.append(given), multiply(*given)))
    with torch.inference_mode():
        torch.testing.assert_close(router(x), expected, rtol=2**-6, atol=2**-7)
        assert len(calls) == 1
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            router(draw(5, 32))
    router(x).sum().backward()
    assert router.weight.grad is not None
    assert len(calls) == 1


def test_a_module_without_a_matrix_stays() -> None:
    layer = nn.LayerNorm(8)
    weight = layer.weight
    use_kernel_of(layer)
    use_kernel_of(nn.ReLU())
    assert layer.weight is weight


def test_a_bias_for_all_outputs_is_left_to_torch() -> None:
    assert not products.takes(draw(2, 64), draw(64, 64), draw(1))


@pytest.mark.parametrize("num_outputs", [96, 70])
def test_a_bias_is_added_before_rounding(num_outputs: int) -> None:
    x, weight, bias = draw(9, 64), draw(num_outputs, 64), draw(num_outputs) * 100
    out = multiplied(x, weight, bias)
    exact = x.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-3)


def test_a_missing_kernel_is_told_of_and_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    monkeypatch.setattr(kernels, "kernels", None)
    monkeypatch.setattr(kernels, "_missing", "not built", raising=False)
    kernels.reason.cache_clear()
    try:
        with caplog.at_level("INFO"):
            use_kernels(layer)
        assert not products.takes(draw(2, 64), layer.weight)
    finally:
        monkeypatch.undo()
        kernels.reason.cache_clear()
    assert type(layer) is nn.Linear
    assert "the kernels for it are missing, not built" in caplog.text


def test_a_kernel_of_another_version_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_VERSION", 0)
    kernels.reason.cache_clear()
    try:
        assert "another version" in str(kernels.reason())
    finally:
        monkeypatch.undo()
        kernels.reason.cache_clear()
