"""Pre-gated models: equal to the formulas to the bit, whoever computes them, and prefetched exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgmoe import pre_gate
from pgmoe.models.moe_blocks import moe_blocks
from pgmoe.training.pregate import pregate
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import (
    EARLY_ROUTED_FAMILIES,
    ENCODER_DECODER_FAMILIES,
    FAMILIES,
    tiny_config,
    tiny_model,
)
from tests.support.demands import demanded
from tests.support.plain_pre_gated import PlainExpert, PlainGate, plain_pre_gated
from tests.support.runs import Prompts, run

NUM_BLOCKS = 4
REWIRED = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "switch_transformers")
PROMPTS = Prompts.random(seed=7)
DECODERS = tuple(f for f in FAMILIES if f not in (*ENCODER_DECODER_FAMILIES, *EARLY_ROUTED_FAMILIES))


def save_deep(family: str, folder: Path, seed: int) -> Path:
    """A tiny checkpoint with four MoE blocks in each stack, in float32."""
    config: Any = tiny_config(family)
    if family == "switch_transformers":
        config.num_layers = config.num_decoder_layers = 2 * NUM_BLOCKS
        config.encoder_sparse_step = config.decoder_sparse_step = 2
        config.num_sparse_encoder_layers = config.num_sparse_decoder_layers = NUM_BLOCKS
        config.expert_capacity = 64
    else:
        config.num_hidden_layers = NUM_BLOCKS
    if family == "qwen2_moe":
        config.mlp_only_layers, config.layer_types = [], ["full_attention"] * NUM_BLOCKS
    tiny_model(config, torch.float32, seed).save_pretrained(folder)
    return folder


def plain_transformers(folder: Path) -> PreTrainedModel:
    """As somebody without this engine loads it: transformers, and one call."""
    config = transformers.AutoConfig.from_pretrained(folder)
    auto: Any = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    model: PreTrainedModel = auto.from_pretrained(folder, experts_implementation="eager").eval()
    pre_gate(model)
    return model


@dataclass
class Tap:
    """What went into the experts of one block, and what came out, flat."""

    given: Tensor = field(default_factory=lambda: torch.empty(0))
    found: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        width = args[0].shape[-1]
        self.given, self.found = args[0].reshape(-1, width), out.reshape(-1, width)


def gate_of(router: Any) -> PlainGate:
    if hasattr(router, "classifier"):
        return PlainGate(router.classifier.weight, 1, normalised=False)
    return PlainGate(router.weight, router.top_k, normalised=getattr(router, "norm_topk_prob", True))


def experts_of(module: Any) -> list[PlainExpert]:
    if isinstance(module, nn.ModuleDict):
        return [lambda x, e=e: e.wo(e.wi(x).relu()) for e in module.values()]

    def gated(expert: int) -> PlainExpert:
        def compute(x: Tensor) -> Tensor:
            gate, up = nn.functional.linear(x, module.gate_up_proj[expert]).chunk(2, dim=-1)
            return nn.functional.linear(nn.functional.silu(gate) * up, module.down_proj[expert])

        return compute

    return [gated(expert) for expert in range(module.num_experts)]


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("family", REWIRED)
@torch.inference_mode()
def test_every_block_gives_what_the_formulas_give(family: str, level: int, tmp_path: Path) -> None:
    pregate(str(save_deep(family, tmp_path / "old", level)), tmp_path / "new", level=level, scope="both")
    model = plain_transformers(tmp_path / "new")
    stacks = moe_blocks(model)
    blocks = [model.get_submodule(b.name) for stack in stacks.values() for b in stack]
    taps = [Tap() for _ in blocks]
    for block, tap in zip(blocks, taps, strict=True):
        block.experts.register_forward_hook(tap)  # type: ignore[union-attr]
    ids = torch.tensor([PROMPTS.one])
    extra = {"decoder_input_ids": ids[:, :6]} if model.config.is_encoder_decoder else {}
    model(input_ids=ids, **extra)
    assert [len(stack) for stack in stacks.values()] == [NUM_BLOCKS] * len(stacks)
    for first in range(0, len(blocks), NUM_BLOCKS):
        here = slice(first, first + NUM_BLOCKS)
        routers = [b.router for stack in stacks.values() for b in stack][here]
        expected = plain_pre_gated(
            [gate_of(router) for router in routers],
            [experts_of(block.experts) for block in blocks[here]],
            [tap.given for tap in taps[here]],
            level,
        )
        for tap, wanted in zip(taps[here], expected, strict=True):
            assert tap.found.abs().max() > 0
            assert torch.equal(tap.found, wanted)


@pytest.mark.parametrize("family", REWIRED)
def test_the_engine_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    pregate(str(save_deep(family, tmp_path / "old", 3)), tmp_path / "new", level=2, scope="both")
    model, prompt = plain_transformers(tmp_path / "new"), torch.tensor([PROMPTS.one])
    ours = run(tmp_path / "new", PROMPTS, device_memory="100%")
    start = {"decoder_input_ids": prompt.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits_one, model(input_ids=prompt, **start).logits)


@pytest.mark.parametrize("family", [*DECODERS, "switch_transformers"])
def test_offloaded_is_resident_to_the_bit(tiny: TinyCheckpoints, family: str, tmp_path: Path) -> None:
    scope: Any = "both" if family == "switch_transformers" else "decoder"
    pregate(str(tiny(family)), tmp_path / "new", level=1, scope=scope)
    resident = run(tmp_path / "new", PROMPTS, device_memory="100%")
    run(tmp_path / "new", PROMPTS, device_memory="40%").same_as(resident)
    run(tmp_path / "new", PROMPTS, device_memory="50%", gating="on_demand").same_as(resident)
    assert not torch.equal(run(tiny(family), PROMPTS).logits_one, resident.logits_one)


@pytest.mark.parametrize("family", ["mixtral", "switch_transformers"])
def test_level_0_is_the_identity(tiny: TinyCheckpoints, family: str, tmp_path: Path) -> None:
    source = tiny(family)
    pregate(str(source), tmp_path / "new", level=0)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == files


@pytest.mark.parametrize("level", [1, 2, 3])
def test_nothing_crosses_from_one_step_to_the_next(level: int, tmp_path: Path) -> None:
    """Token by token with a KV cache as all at once: a selection is of the tokens of its own step."""
    pregate(str(save_deep("mixtral", tmp_path / "old", 5)), tmp_path / "new", level=level)
    said = run(tmp_path / "new", PROMPTS, num_tokens=20).token_ids
    model, ids = plain_transformers(tmp_path / "new"), torch.tensor([[*PROMPTS.one, *said]])
    with torch.inference_mode():
        likeliest = model(input_ids=ids).logits[0].argmax(-1)
    assert tuple(likeliest[len(PROMPTS.one) - 1 : -1].tolist()) == said
    assert len(set(said)) > 5


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_what_is_selected_ahead_never_has_to_be_demanded(
    family: str, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pregate(str(save_deep(family, tmp_path / "old", 11)), tmp_path / "new", level=level)
    exact = set(range(level, NUM_BLOCKS))
    options = {"device_memory": "60%"}
    found = demanded(tmp_path / "new", PROMPTS.one, monkeypatch, **options)
    assert found.keys() == set(range(level))
    late = demanded(tmp_path / "new", PROMPTS.one, monkeypatch, gating="on_demand", **options)
    assert late.keys() >= exact
