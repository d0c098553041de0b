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
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer
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
    "two results": lambda: GptOssDecoderLayer(GptOssConfig(**SIZES, num_local_experts=4), 0),
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
@pytest.mark.parametrize("num_tokens", [1, 5, 70])
@pytest.mark.parametrize("kind", PLAIN | OF_MORE_PARTS)
def test_computes_the_bits_of_the_familys_layer(kind: str, num_tokens: int) -> None:
    layer = layer_of((PLAIN | OF_MORE_PARTS)[kind])
    theirs = copy.deepcopy(layer)
    plug(theirs)
    use_kernels(layer)
    assert isinstance(layer, _PlainDecoderLayer)
    assert isinstance(layer.mlp, PlainBlock) == (kind in PLAIN)
    x_1TC = torch.randn(1, num_tokens, WIDTH).bfloat16()
    given = x_1TC.clone()
    mask = torch.randn(num_tokens, WIDTH).bfloat16()
    assert torch.equal(layer(given, attention_mask=mask), theirs(x_1TC, attention_mask=mask))
    assert torch.equal(given, x_1TC), "what it is given is somebody else's"


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


@pytest.mark.parametrize("part", ["self_attn", "mlp", "input_layernorm"])
def test_a_layer_of_which_a_part_is_hooked_stays(part: str) -> None:
    layer = layer_of(PLAIN["mixtral"])
    getattr(layer, part).register_forward_hook(lambda *_: None)
    kept = type(layer)
    use_kernels(layer)
    assert type(layer) is kept


def test_a_block_whose_router_is_hooked_stays() -> None:
    layer = layer_of(PLAIN["mixtral"])
    layer.mlp.gate.register_forward_hook(lambda *_: None)
    kept = type(layer.mlp)
    use_kernels(layer)
    assert type(layer.mlp) is kept


def test_gradients_come_from_the_familys_layer() -> None:
    layer = layer_of(PLAIN["mixtral"])
    theirs = copy.deepcopy(layer)
    plug(theirs)
    use_kernels(layer)
    x_1TC, mask = torch.randn(1, 4, WIDTH).bfloat16(), torch.ones(4, WIDTH).bfloat16()
    for each in (layer, theirs):
        each(x_1TC, attention_mask=mask).float().sum().backward()
    assert torch.equal(layer.self_attn.product.weight.grad, theirs.self_attn.product.weight.grad)
