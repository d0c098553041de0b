"""Decoder layers and MoE blocks with fewer operations: which become so, and what they compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeDecoderLayer
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeDecoderLayer
from transformers.models.phimoe.modeling_phimoe import PhimoeDecoderLayer
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeDecoderLayer
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

from pgmoe.cpu.kernels import available
from pgmoe.models import decoder_layer, norm, plain_block
from pgmoe.models.decoder_layer import _PlainDecoderLayer
from pgmoe.models.plain_block import PlainBlock
from tests.support.fresh import fresh_seed

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")
WIDTH = 64
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip


class Scaled(MixtralDecoderLayer):
    """Of a family that adds half of what its parts give."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return (hidden_states + super().forward(hidden_states, **kwargs)) / 2


class Unpacking(MixtralDecoderLayer):
    """Of a family whose block gives two things."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = residual + hidden_states
        out, _ = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + out


class Asking(MixtralDecoderLayer):
    """Of a family that has two kinds of blocks, one of which gives two things."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if isinstance(self.mlp, MixtralSparseMoeBlock):
            return Unpacking.forward(self, hidden_states, **kwargs)  # type: ignore[arg-type]
        return super().forward(hidden_states, **kwargs)


class Silent(MixtralDecoderLayer):
    """Of a family that tells its attention less."""

    def forward(self, hidden_states: Tensor, paged: object = None, **kwargs: Any) -> Any:
        return super().forward(hidden_states, **kwargs)


PLAIN: dict[str, Any] = {
    "mixtral": lambda: MixtralDecoderLayer(MixtralConfig(**SIZES, num_local_experts=4), 0),
    "olmoe": lambda: OlmoeDecoderLayer(OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2), 0),
    "qwen3_moe": lambda: Qwen3MoeDecoderLayer(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2), 0
    ),
}
OF_MORE_PARTS: dict[str, Any] = {
    "shared expert": lambda: Qwen2MoeDecoderLayer(
        Qwen2MoeConfig(**SIZES, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2), 0
    ),
}
OTHERS: dict[str, Any] = {
    "scaled": lambda: Scaled(MixtralConfig(**SIZES, num_local_experts=4), 0),
    "parts of other names": lambda: GraniteMoeDecoderLayer(GraniteMoeConfig(**SIZES, num_local_experts=4), 0),
    "other norms": lambda: PhimoeDecoderLayer(PhimoeConfig(**SIZES, num_local_experts=4), 0),
    "norms that round once": lambda: GptOssDecoderLayer(GptOssConfig(**SIZES, num_local_experts=4), 0),
    "two results": lambda: Unpacking(MixtralConfig(**SIZES, num_local_experts=4), 0),
    "two results of this block": lambda: Asking(MixtralConfig(**SIZES, num_local_experts=4), 0),
    "fewer arguments": lambda: Silent(MixtralConfig(**SIZES, num_local_experts=4), 0),
}


class Attention(nn.Module):
    """Any function of its input, which asks for what a model gives its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)

    def forward(self, hidden_states: Tensor, *, attention_mask: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.product(hidden_states) * attention_mask, None


def layer_of(make: Any) -> Any:
    """Of random weights, with experts that the family computes itself, plugged in as the engine's are."""
    torch.manual_seed(fresh_seed())
    layer = make().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    layer.bfloat16()
    layer.self_attn = Attention()
    plug(layer)
    return layer


def plug(layer: Any) -> None:
    if hasattr(layer, "mlp") and hasattr(layer.mlp, "experts"):
        layer.mlp.experts.routed_experts = layer.mlp.experts.forward


def use_kernels(layer: nn.Module) -> None:
    for module in layer.modules():
        norm.use_kernel(module)
        plain_block.use_kernel(module)
    decoder_layer.use_kernel(layer)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (1, 70), (3, 2)])
@pytest.mark.parametrize("kind", PLAIN | OF_MORE_PARTS)
def test_computes_the_bits_of_the_familys_layer(kind: str, shape: tuple[int, int]) -> None:
    layer = layer_of((PLAIN | OF_MORE_PARTS)[kind])
    theirs = copy.deepcopy(layer)
    plug(theirs)
    use_kernels(layer)
    assert isinstance(layer, _PlainDecoderLayer)
    assert isinstance(layer.mlp, PlainBlock) == (kind in PLAIN)
    x_BTC = torch.randn(*shape, WIDTH).bfloat16()
    given = x_BTC.clone()
    mask = torch.randn(shape[1], WIDTH).bfloat16()
    assert torch.equal(layer(given, attention_mask=mask), theirs(x_BTC, attention_mask=mask))
    assert torch.equal(given, x_BTC), "what it is given is somebody else's"


@torch.inference_mode()
def test_a_block_alone_computes_the_bits_of_the_familys() -> None:
    layer = layer_of(PLAIN["mixtral"])
    x_BSC = torch.randn(2, 3, WIDTH).bfloat16()
    expected = layer.mlp(x_BSC)
    plain_block.use_kernel(layer.mlp)
    assert isinstance(layer.mlp, PlainBlock)
    assert torch.equal(layer.mlp(x_BSC), expected)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_layer_that_does_otherwise_stays(kind: str) -> None:
    layer = layer_of(OTHERS[kind])
    kept = type(layer)
    use_kernels(layer)
    assert type(layer) is kept


def test_a_block_that_does_more_stays() -> None:
    class Doubled(type(PLAIN["mixtral"]().mlp)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            out: Tensor = super().forward(hidden_states)
            return out * 2

    layer = layer_of(PLAIN["mixtral"])
    layer.mlp.__class__ = Doubled
    use_kernels(layer)
    assert type(layer.mlp) is Doubled
    assert isinstance(layer, _PlainDecoderLayer), "whatever its block does"


PARTS = [
    "self_attn", "mlp", "input_layernorm", "post_attention_layernorm", "mlp.gate", "mlp.experts",
]  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("part", PARTS)
def test_hooks_of_parts_are_called_whenever_they_come(part: str) -> None:
    layer = layer_of(PLAIN["mixtral"])
    use_kernels(layer)
    called: list[str] = []
    layer.get_submodule(part).register_forward_hook(lambda *_: called.append(part))
    layer(torch.randn(1, 4, WIDTH).bfloat16(), attention_mask=torch.ones(4, WIDTH).bfloat16())
    assert called == [part]


@torch.no_grad()
def test_while_it_trains_the_familys_forward_is_called() -> None:
    layer = layer_of(PLAIN["mixtral"]).train()
    use_kernels(layer)
    layer.mlp.jitter_noise = 0.5
    x_1TC, mask = torch.randn(1, 4, WIDTH).bfloat16(), torch.ones(4, WIDTH).bfloat16()
    assert not torch.equal(layer(x_1TC, attention_mask=mask), layer(x_1TC, attention_mask=mask))
    layer.eval()
    assert torch.equal(layer(x_1TC, attention_mask=mask), layer(x_1TC, attention_mask=mask))


def test_gradients_come_from_the_familys_layer() -> None:
    layer = layer_of(PLAIN["mixtral"])
    theirs = copy.deepcopy(layer)
    plug(theirs)
    use_kernels(layer)
    x_1TC, mask = torch.randn(1, 4, WIDTH).bfloat16(), torch.ones(4, WIDTH).bfloat16()
    for each in (layer, theirs):
        each(x_1TC, attention_mask=mask).float().sum().backward()
    assert torch.equal(layer.self_attn.product.weight.grad, theirs.self_attn.product.weight.grad)
