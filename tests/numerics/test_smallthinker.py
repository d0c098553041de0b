"""SmallThinker: equal to its formulas, from folders as they are published, its experts known ahead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.errors import CheckpointError, ConfigError, CorruptCheckpoint, UnsupportedModel
from pgmoe.models.loader import read_plan
from pgmoe.models.smallthinker import SmallThinkerMoeBlock
from pgmoe.models.smallthinker_config import SmallThinkerConfig
from tests.support.checkpoints import tiny_config, tiny_model
from tests.support.damage import WEIGHTS, add_code, edit_config
from tests.support.demands import demanded
from tests.support.plain_smallthinker import plain_logits, plain_moe
from tests.support.runs import Prompts, all_logits, run

PROMPTS = Prompts.random(seed=3)
Save = Callable[..., Path]

PUBLISHED: dict[str, Any] = {  # the names in the 4B model's config.json, with smaller numbers
    "architectures": ["SmallThinkerForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_smallthinker.SmallThinkerConfig",
        "AutoModel": "modeling_smallthinker.SmallThinkerForCausalLM",
        "AutoModelForCausalLM": "modeling_smallthinker.SmallThinkerForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": [1, 2],
    "head_dim": 16,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "max_length": None,
    "max_position_embeddings": 256,
    "model_name": "smallthinker_tiny",
    "model_type": "smallthinker",
    "moe_ffn_hidden_size": 40,
    "moe_num_active_primary_experts": 3,
    "moe_num_primary_experts": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "repetition_penalty": None,
    "rms_norm_eps": 1e-06,
    "rope_layout": [0, 1, 1, 1, 0],
    "rope_scaling": None,
    "rope_theta": 1.5e4,
    "sliding_window_layout": [0, 1, 1, 1, 0],
    "sliding_window_size": 6,
    "temperature": None,
    "tie_word_embeddings": True,
    "tokenizer_class": "Qwen2Tokenizer",
    "top_p": None,
    "torch_dtype": "float32",
    "transformers_version": "4.53.3",
    "use_cache": False,
    "vocab_size": 128,
}


def published_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a published folder."""
    width, inner = config["hidden_size"], config["moe_ffn_hidden_size"]
    q, kv = (config[f"num_{n}_heads"] * config["head_dim"] for n in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, q)
        shapes |= {f"{layer}.{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
        moe = f"{layer}.block_sparse_moe"
        shapes[f"{moe}.primary_router.weight"] = (config["moe_num_primary_experts"], width)
        for expert in range(config["moe_num_primary_experts"]):
            shapes |= {f"{moe}.experts.{expert}.{n}.weight": (inner, width) for n in ("up", "gate")}
            shapes[f"{moe}.experts.{expert}.down.weight"] = (width, inner)
    return shapes


@pytest.fixture
def published(tmp_path: Path) -> Save:
    """`published(**changes)`: a folder as the hub has it, with code beside the weights."""

    def save(**changes: Any) -> Path:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = {**PUBLISHED, "moe_primary_router_apply_softmax": False, **changes}
        generator = torch.Generator().manual_seed(0)
        weights = {
            key: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 1.0)
            for key, shape in published_tensors(config).items()
        }
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return save


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(folder / WEIGHTS), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_published_folder_gives_what_the_formulas_give(published: Save, softmax: bool, tied: bool) -> None:
    folder = published(moe_primary_router_apply_softmax=softmax, tie_word_embeddings=tied)
    prompts = Prompts.random(seed=5)
    found = run(folder, prompts, device_memory="50%")
    with torch.inference_mode():
        torch.testing.assert_close(found.logits_one[0], plain_logits(list(prompts.one), *read(folder)))
    assert len(prompts.one) > PUBLISHED["sliding_window_size"]


def test_its_code_is_never_run(published: Save) -> None:
    folder = published()
    ran, evil = add_code(folder)
    edit_config(folder, auto_map=evil)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": evil}))
    assert len(read_plan(str(folder)).layers) == PUBLISHED["num_hidden_layers"]
    assert not ran.exists()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("num_tokens", [2, 30])
@torch.inference_mode()
def test_a_block_gives_what_the_formulas_give_to_the_bit(softmax: bool, num_tokens: int) -> None:
    config: Any = tiny_config("smallthinker")
    config.moe_primary_router_apply_softmax = softmax
    config._experts_implementation = "eager"
    block = SmallThinkerMoeBlock(config)
    generator = torch.Generator().manual_seed(num_tokens)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    plain = {"primary_router.weight": block.primary_router.weight}
    for expert in range(config.num_experts):
        gate, up = block.experts.gate_up_proj[expert].chunk(2)
        named = {"gate": gate, "up": up, "down": block.experts.down_proj[expert]}
        plain |= {f"experts.{expert}.{name}.weight": weight for name, weight in named.items()}
    layer_input, x = torch.randn(2, 1, num_tokens, config.hidden_size, generator=generator)
    found = block(x, *block.choose(layer_input))
    assert torch.equal(found[0], plain_moe(layer_input[0], x[0], plain, config.to_dict()))


@pytest.mark.parametrize(
    ("rope", "window"),
    [([1, 1, 1], [0, 0, 0]), ([0, 1, 1], [0, 1, 1]), ([1, 0, 1], [1, 1, 0]), ([0, 0, 0], [1, 1, 1])],
)
def test_token_by_token_is_all_at_once(rope: list[int], window: list[int], tmp_path: Path) -> None:
    config: Any = tiny_config("smallthinker").to_dict()
    config |= {"rope_layout": rope, "sliding_window_layout": window, "sliding_window_size": 5}
    tiny_model(SmallThinkerConfig(**config), torch.float32).save_pretrained(tmp_path)
    found = run(tmp_path, PROMPTS, num_tokens=25, device_memory="60%", prefill_chunk=4)
    engine = Engine(EngineConfig(model=str(tmp_path), device="cpu"))
    try:
        logits = all_logits(engine.loaded.model, [(*PROMPTS.one, *found.token_ids)])[0]
    finally:
        engine.close()
    assert tuple(logits.argmax(-1)[len(PROMPTS.one) - 1 : -1].tolist()) == found.token_ids
    assert len(set(found.token_ids)) > 5


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A tiny model of four layers."""
    config: Any = tiny_config("smallthinker").to_dict()
    config |= {"num_hidden_layers": 4, "rope_layout": [0, 1, 1, 1], "sliding_window_layout": [0, 1, 1, 1]}
    folder = tmp_path / "deep"
    tiny_model(SmallThinkerConfig(**config), torch.float32).save_pretrained(folder)
    return folder


def test_what_a_router_chose_before_attention_never_has_to_be_demanded(
    deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not demanded(deep, PROMPTS.one, monkeypatch, device_memory="40%")
    by_layer = demanded(deep, PROMPTS.one, monkeypatch, device_memory="40%", gating="on_demand")
    assert by_layer.keys() == {0, 1, 2, 3}


def test_no_gating_changes_a_bit_and_routers_are_not_asked_ahead(deep: Path) -> None:
    resident = run(deep, PROMPTS, device_memory="100%")
    for gating in ("auto", "pregated", "on_demand", "statistical", "prefetch_all"):
        run(deep, PROMPTS, device_memory="40%", gating=gating).same_as(resident)
    with pytest.raises(ConfigError, match=r"gating 'speculative' .* choose 'pregated'"):
        run(deep, PROMPTS, device_memory="40%", gating="speculative")


def test_the_host_waits_for_the_device_once_a_layer(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(EngineConfig(model=str(deep), device="cpu", device_memory="40%"))
    to_host, copied = Tensor.cpu, []
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: (copied.append(tensor.shape), to_host(tensor))[1])
    try:
        all_logits(engine.loaded.model, [PROMPTS.one])
    finally:
        engine.close()
    assert copied == [(len(PROMPTS.one), 2)] * 4


REFUSED: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "dense layers": ({"moe_layer_layout": [1, 1, 0, 1, 1]}, UnsupportedModel, "layers without experts"),
    "late routers": ({"moe_enable_early_router": False}, UnsupportedModel, "input of their experts"),
    "secondary": ({"moe_enable_secondary_experts": True}, UnsupportedModel, "split into parts"),
    "shared": ({"moe_shared_primary_experts": 2}, UnsupportedModel, "moe_shared_primary_experts 2"),
    "normed queries": ({"use_qk_norm": True}, UnsupportedModel, "normalised queries and keys"),
    "another gate": ({"hidden_act": "silu"}, UnsupportedModel, "hidden_act 'silu'"),
    "a short layout": ({"rope_layout": [1, 1]}, CorruptCheckpoint, "rope_layout is of 2 layers"),
    "a long layout": ({"sliding_window_layout": [0] * 6}, CorruptCheckpoint, "of `layer_types` \\(6\\)"),
    "no window": ({"sliding_window_size": None}, CorruptCheckpoint, "sliding_window_size is missing"),
    "a layout of words": ({"rope_layout": ["yes"] * 5}, CorruptCheckpoint, "rope_layout"),
    "text as a number": ({"hidden_size": "wide"}, CorruptCheckpoint, "hidden_size"),
    "more experts": ({"moe_num_primary_experts": 9}, CorruptCheckpoint, "8 of 9 experts"),
    "too many for a token": ({"moe_num_active_primary_experts": 9}, CorruptCheckpoint, "uses 9 of 8"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_not_served_is_refused_and_named(published: Save, change: str) -> None:
    folder = published()
    options, kind, message = REFUSED[change]
    edit_config(folder, **options)
    with pytest.raises(CheckpointError, match=message) as error:
        read_plan(str(folder))
    assert type(error.value) is kind


def test_what_earlier_versions_of_the_family_wrote_down_and_did_not_use_is_no_obstacle(
    published: Save,
) -> None:
    folder = published(
        moe_layer_layout=[1] * 5,
        dense_ffn_hidden_size=4096,
        moe_enable_early_router=True,
        moe_enable_secondary_experts=False,
        moe_shared_primary_experts=0,
        use_qk_norm=False,
        sliding_window=6,
        sliding_window_pattern=[0, 1, 1, 1, 0],
    )
    assert len(read_plan(str(folder)).layers) == 5
