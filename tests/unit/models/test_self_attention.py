"""Self-attention by the kernel: the same bits as transformers' own layer, and which layers take it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GraniteMoeSWAConfig,
    Ministral3Config,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.granitemoe_swa.modeling_granitemoe_swa import GraniteMoeSWAAttention
from transformers.models.ministral3.modeling_ministral3 import Ministral3Attention
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, MixtralRotaryEmbedding
from transformers.models.olmoe.modeling_olmoe import OlmoeAttention
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeAttention
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

from pgmoe.cpu.kernels import SLAB, available, kernels
from pgmoe.kv.choice import attention_over
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool, LayerShape
from pgmoe.models import linear, norm
from pgmoe.models.attention import PAGED_ATTENTION, MaskRule, PagedCache, register
from pgmoe.models.kernels import use_kernels
from pgmoe.models.self_attention import _KernelSelfAttention
from tests.support.fresh import fresh_seed

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")
WIDTH, HEADS, KV_HEADS, HEAD = 96, 6, 2, 32
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
}
PLAIN: dict[str, tuple[type[nn.Module], PreTrainedConfig]] = {
    "mixtral": (MixtralAttention, MixtralConfig(**SIZES)),
    "biases": (Qwen2MoeAttention, Qwen2MoeConfig(**SIZES, qkv_bias=True)),
    "norms of heads": (Qwen3MoeAttention, Qwen3MoeConfig(**SIZES)),
    "norms of all heads": (OlmoeAttention, OlmoeConfig(**SIZES | {"hidden_size": HEADS * HEAD})),
    "sinks": (GraniteMoeSWAAttention, GraniteMoeSWAConfig(**SIZES, attention_bias=True)),
}
OTHER: dict[str, tuple[type[nn.Module], PreTrainedConfig]] = {
    "halves that are turned otherwise": (GptOssAttention, GptOssConfig(**SIZES)),
    "scaled by position": (Ministral3Attention, Ministral3Config(**SIZES)),
    "no rotary embedding": (
        SmolLM3Attention,
        SmolLM3Config(**SIZES, no_rope_layers=[0], num_hidden_layers=1),
    ),
    "clipped": (OlmoeAttention, OlmoeConfig(**SIZES | {"hidden_size": HEADS * HEAD}, clip_qkv=8.0)),
    "heads too narrow": (MixtralAttention, MixtralConfig(**SIZES | {"head_dim": 16})),
    "a width that the kernel does not take": (MixtralAttention, MixtralConfig(**SIZES | {"hidden_size": 80})),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(fresh_seed())


def layer_of(case: tuple[type[nn.Module], PreTrainedConfig]) -> Any:
    kind, config = case
    config._attn_implementation = PAGED_ATTENTION
    made = kind(copy.deepcopy(config), layer_idx=0).eval()  # type: ignore[call-arg]
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1 if parameter.ndim == 1 else 0, 0.2)
    return made.bfloat16()


def by_parts(layer: Any) -> Any:
    """A copy whose parts take their kernels, and which itself stays transformers'."""
    made = copy.deepcopy(layer)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            linear.use_kernel(module)
        norm.use_kernel(module)
    return made


class Pass:
    """Tokens of some sequences, with pages of their own for each layer that computes them."""

    def __init__(self, num_tokens: list[int], window: int = 10**6) -> None:
        starts, self.segments, first = [0, 7, 300], [], 0
        for number, count in enumerate(num_tokens):
            blocks = range(first, first := first + -(-(starts[number] + count) // 16))
            self.segments.append(Segment(count, starts[number], tuple(reversed(blocks))))
        self.num_blocks, self.total = first, sum(num_tokens)
        self.mask = MaskRule(lambda _, __, q, k: (k <= q) & (q < k + window))
        register()

    @torch.inference_mode()
    def run(self, layer: Any, hidden_1TC: Tensor, *, turned: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer gives, and the keys and values that it keeps."""
        pool = KvPool(
            [LayerShape(KV_HEADS, HEAD, HEAD, torch.bfloat16)], self.num_blocks, 16, torch.device("cpu")
        )
        for part in (pool.layers[0].keys, pool.layers[0].values):
            part.copy_(torch.linspace(-9, 999, part.numel()).sin().view(part.shape))
        pages = Pages(pool, attention_over(pool))
        packed = PackedTokens(self.segments, 16, torch.device("cpu"))
        pages.begin(packed)
        cache = PagedCache(pages)
        angles = MixtralRotaryEmbedding(MixtralConfig(**SIZES))(hidden_1TC, packed.positions_T[None])
        out, _ = layer(
            hidden_states=hidden_1TC,
            position_embeddings=angles if turned else None,
            attention_mask=self.mask,
            cache=cache,
            paged=cache,
            position_ids=packed.positions_T[None],
        )
        pages.end()
        return out, pool.layers[0].keys, pool.layers[0].values


@pytest.mark.parametrize("num_tokens", [[1], [1, 1, 5], [3, 40, 1], [SLAB + 3, 1, 70]])
@pytest.mark.parametrize("family", PLAIN)
def test_gives_and_keeps_the_same_bits_as_the_familys_layer(family: str, num_tokens: list[int]) -> None:
    plain = by_parts(layer := layer_of(PLAIN[family]))
    use_kernels(layer)
    assert isinstance(layer, _KernelSelfAttention)
    assert isinstance(layer, PLAIN[family][0])
    computed = Pass(num_tokens)
    hidden_1TC = torch.randn(1, computed.total, layer.q_proj.in_features).bfloat16()
    for ours, theirs in zip(computed.run(layer, hidden_1TC), computed.run(plain, hidden_1TC), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("window", [5, 20])
def test_a_window_is_the_rules(window: int) -> None:
    plain = by_parts(layer := layer_of(PLAIN["sinks"]))
    use_kernels(layer)
    computed, hidden_1TC = Pass([1, 30], window), torch.randn(1, 31, WIDTH).bfloat16()
    out, expected = (computed.run(each, hidden_1TC)[0] for each in (layer, plain))
    assert torch.equal(out, expected)
    assert not torch.equal(out, Pass([1, 30]).run(layer, hidden_1TC)[0])


def test_a_layer_that_is_not_told_of_positions_is_the_familys() -> None:
    plain = by_parts(layer := layer_of(PLAIN["sinks"]))
    use_kernels(layer)
    computed, hidden_1TC = Pass([2]), torch.randn(1, 2, WIDTH).bfloat16()
    out, expected = (computed.run(each, hidden_1TC, turned=False)[0] for each in (layer, plain))
    assert torch.equal(out, expected)


def test_sinks_are_those_that_it_has_now() -> None:
    layer = layer_of(PLAIN["sinks"])
    layer.o_proj.bias.data.zero_()
    use_kernels(layer)
    computed, hidden_1TC = Pass([3]), torch.randn(1, 3, WIDTH).bfloat16()
    assert computed.run(layer, hidden_1TC)[0].abs().max() > 1e-3
    layer.sinks = nn.Parameter(torch.full_like(layer.sinks, 1e6))  # takes all of the softmax
    assert computed.run(layer, hidden_1TC)[0].abs().max() < 1e-30


def test_a_part_that_was_hooked_is_called() -> None:
    layer = layer_of(PLAIN["mixtral"])
    layer.q_proj.register_forward_hook(lambda *_: None)
    use_kernels(layer)
    assert type(layer) is MixtralAttention


def test_an_output_projection_that_is_hooked_later_is_called() -> None:
    layer = layer_of(PLAIN["mixtral"])
    use_kernels(layer)
    assert isinstance(layer, _KernelSelfAttention)
    computed, hidden_1TC = Pass([3]), torch.randn(1, 3, WIDTH).bfloat16()
    expected = computed.run(layer, hidden_1TC)[0]
    given: list[Tensor] = []
    layer.o_proj.register_forward_hook(lambda _module, _inputs, out: given.append(out))
    assert torch.equal(computed.run(layer, hidden_1TC)[0], expected)
    assert torch.equal(given[0], expected)


@pytest.mark.parametrize("family", OTHER)
def test_a_layer_that_does_otherwise_stays(family: str) -> None:
    kind, _ = OTHER[family]
    layer = layer_of(OTHER[family])
    use_kernels(layer)
    assert type(layer) is kind


def test_a_rotation_of_a_part_of_the_head_is_the_familys() -> None:
    layer = layer_of(PLAIN["mixtral"])
    use_kernels(layer)
    hidden_1TC, cache = torch.randn(1, 2, WIDTH).bfloat16(), PagedCache(None)  # type: ignore[arg-type]
    arguments: dict[str, Any] = {
        "hidden_states": hidden_1TC,
        "attention_mask": Pass([2]).mask,
        "paged": cache,
    }
    whole, half = (torch.ones(1, 2, width).bfloat16() for width in (HEAD, HEAD // 2))
    with torch.inference_mode():
        assert layer.projections.take(**arguments, position_embeddings=(whole, whole))
        assert not layer.projections.take(**arguments, position_embeddings=(half, half))
        assert not layer.projections.take(**arguments, position_embeddings=(whole.float(), whole.float()))
        assert not layer.projections.take(**arguments)
        arguments["hidden_states"] = hidden_1TC.view(2, 1, WIDTH)
        assert not layer.projections.take(**arguments, position_embeddings=(whole, whole)), "rows"
    arguments["hidden_states"] = hidden_1TC
    assert not layer.projections.take(**arguments, position_embeddings=(whole, whole)), "gradients"


def test_without_pages_it_is_the_familys() -> None:
    plain = by_parts(layer := layer_of(PLAIN["mixtral"]))
    use_kernels(layer)
    for each in (plain, layer):
        each.config._attn_implementation = "eager"
    hidden_1TC, turned = torch.randn(1, 4, WIDTH).bfloat16(), torch.ones(1, 4, HEAD).bfloat16()
    with torch.inference_mode():
        out, expected = (
            each(hidden_states=hidden_1TC, position_embeddings=(turned, turned), attention_mask=None)[0]
            for each in (layer, plain)
        )
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("rows", "norm_width"), [(33, 32), (96, 64), (96, 0)])
def test_heads_and_norms_that_do_not_fill_the_outputs_are_refused(rows: int, norm_width: int) -> None:
    part = (1, 0, 1, 0, rows, 1, norm_width, 1e-5, True)
    with pytest.raises(ValueError, match=f"{rows} outputs in heads of 32, norms of {norm_width}"):
        kernels.project(1, 1, 1, 1, 0, 32, 32, 1, (part, part, part))
