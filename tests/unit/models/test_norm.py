"""Norms by the kernel against float64, and which of them take it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from pgmoe.cpu.kernels import available
from pgmoe.models import norm
from tests.support.fresh import fresh_seed

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(fresh_seed())


def with_weights(made: nn.Module) -> nn.Module:
    nn.init.normal_(made.weight)  # type: ignore[arg-type]
    return made.to(torch.bfloat16)


@torch.inference_mode()
@pytest.mark.parametrize("num_tokens", [1, 3, 70])
@pytest.mark.parametrize("size", [1e-3, 1, 1e4])
def test_as_the_formula_says(num_tokens: int, size: float) -> None:
    width = 16 * int(torch.randint(1, 60, ()))
    layer = with_weights(MixtralRMSNorm(width, eps=1e-5))
    x = (torch.randn(1, num_tokens, width) * size).bfloat16()
    plain = layer(x)
    norm.use_kernel(layer)
    assert isinstance(layer, norm._KernelNorm)
    assert isinstance(layer, MixtralRMSNorm)
    wide, weight = x.double(), layer.weight.double()
    exact = weight * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x).double(), exact, rtol=2**-7, atol=1e-30)
    assert (layer(x) == plain).double().mean() > 0.999, "rounded as transformers rounds"


@torch.inference_mode()
def test_a_token_gets_the_same_bits_whatever_runs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = with_weights(MixtralRMSNorm(96))
    norm.use_kernel(layer)
    x = torch.randn(40, 96).bfloat16()
    together = layer(x)
    for num_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=num_threads: n)
        assert torch.equal(layer(x), together)
        assert torch.equal(torch.stack([layer(row) for row in x]), together)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 70, 96), (1, 900, 96)])  # the last one by several threads
def test_a_sum_and_its_norm_are_those_of_torch(shape: tuple[int, ...]) -> None:
    layer = with_weights(MixtralRMSNorm(96))
    x, added = (torch.randn(shape).bfloat16() for _ in range(2))
    norm.use_kernel(layer)
    before = x.clone(), added.clone()
    total, normal = norm.add_and_normalise(x, added, layer)
    assert torch.equal(total, x + added)
    assert torch.equal(normal, layer(x + added).view(-1, 96))
    assert torch.equal(x, before[0])
    assert torch.equal(added, before[1])


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


@torch.inference_mode()
@pytest.mark.parametrize(
    "draw",
    [
        (lambda: (drawn(2, 3, 96).float(), drawn(2, 3, 96).float())),
        (lambda: (drawn(2, 3, 96).float(), drawn(2, 3, 96))),
        (lambda: (drawn(2, 3, 96), drawn(96))),
        (lambda: (drawn(3, 2, 96).transpose(0, 1), drawn(2, 3, 96))),
        (lambda: (drawn(2, 3, 96), drawn(3, 2, 96).transpose(0, 1))),
        (lambda: (drawn(3, 2, 96).transpose(0, 1), drawn(3, 2, 96).transpose(0, 1))),
    ],
    ids=["float32", "two types", "broadcast", "strides of one", "of the other", "of both"],
)
def test_a_sum_of_other_operands_is_torchs(draw: Callable[[], tuple[Tensor, Tensor]]) -> None:
    pair = draw()
    layer = with_weights(MixtralRMSNorm(96))
    expected = layer(pair[0] + pair[1]).reshape(-1, 96)
    norm.use_kernel(layer)
    total, normal = norm.add_and_normalise(*pair, layer)
    assert torch.equal(total, pair[0] + pair[1])
    torch.testing.assert_close(normal, expected)


@torch.inference_mode()
def test_a_hook_on_a_norm_is_called() -> None:
    layer = with_weights(MixtralRMSNorm(96))
    norm.use_kernel(layer)
    called: list[bool] = []
    layer.register_forward_hook(lambda *_: called.append(True))
    norm.add_and_normalise(torch.randn(1, 3, 96).bfloat16(), torch.randn(1, 3, 96).bfloat16(), layer)
    assert called


@torch.inference_mode()
def test_what_it_does_not_take_is_the_familys() -> None:
    layer, plain = (with_weights(MixtralRMSNorm(96)) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    norm.use_kernel(layer)
    for x in (torch.randn(3, 96), torch.randn(96, 3).bfloat16().t(), torch.randn(0, 96).bfloat16()):
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.float()(torch.ones(1, 96)), plain.float()(torch.ones(1, 96)))


def test_gradients_come_from_torch() -> None:
    layer = with_weights(MixtralRMSNorm(96))
    norm.use_kernel(layer)
    layer(torch.randn(3, 96).bfloat16()).sum().backward()
    assert layer.weight.grad is not None  # type: ignore[union-attr]


class Gated(MixtralRMSNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


class Picky(MixtralRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, _tokens, _width = hidden_states.shape
        return super().forward(hidden_states) * batch


class Shifted(MixtralRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.amax(-1, keepdim=True))


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        (MixtralRMSNorm(64), True),
        (T5LayerNorm(64), True),
        (GptOssRMSNorm(64), False),  # rounds once
        (GemmaRMSNorm(64), False),  # multiplies by 1 + weight
        (Gated(64), False),
        (Shifted(64), False),
        (Picky(64), False),  # wants three dimensions
        (nn.LayerNorm(64), False),
        (nn.Linear(64, 64), False),
    ],
)
def test_which_norms_take_it(made: nn.Module, taken: bool) -> None:
    layer = with_weights(made)
    norm.use_kernel(layer)
    norm.use_kernel(layer)  # once more changes nothing
    assert isinstance(layer, norm._KernelNorm) == taken
