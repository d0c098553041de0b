from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pgmoe.errors import ConfigError, CorruptCheckpoint, UnsupportedModel
from pgmoe.models.moe_blocks import moe_blocks
from pgmoe.models.pre_gate import gate_map, pre_gate, pre_gated_stacks
from pgmoe.pre_gating import SECTION, PreGating
from tests.support.checkpoints import tiny_config, tiny_model


def tiny(family: str, **options: Any) -> Any:
    config = tiny_config(family)
    for name, value in options.items():
        setattr(config, name, value)
    return tiny_model(config, torch.float32)


def pre_gated(family: str, level: int = 1, scope: Any = "decoder") -> Any:
    """A model whose config says so, and that routes so."""
    model = tiny(family)
    wanted = PreGating(level=level, scope=scope)
    gates = gate_map(pre_gated_stacks(model, wanted), level)
    names = {block.router_name: reader.name for block, reader in gates.items()}
    model.config.pgmoe = PreGating(level=level, scope=scope, gates=names).to_dict()
    assert pre_gate(model) is not None
    return model


def forward(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    ids = torch.randint(5, 100, (2, 9))
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model(input_ids=ids, **extra).logits
    return logits


def test_an_ordinary_model_stays_as_it_is() -> None:
    model = tiny("mixtral")
    before = forward(model)
    assert pre_gate(model) is None
    assert torch.equal(forward(model), before)


def test_routers_that_read_their_layers_input_are_left_as_they_are() -> None:
    with pytest.raises(UnsupportedModel, match=r"SmallThinkerForCausalLM: .* without pre-gating"):
        pre_gated("smallthinker")


def test_pre_gating_changes_the_routing_and_no_parameter_name() -> None:
    plain, model = tiny("mixtral"), pre_gated("mixtral")
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, model.state_dict()[name]) for name, a in plain.state_dict().items())
    assert not torch.equal(forward(plain), forward(model))


@pytest.mark.parametrize(
    ("scope", "changed"),
    [("encoder", {"encoder"}), ("decoder", {"decoder"}), ("both", {"encoder", "decoder"})],
)
def test_the_scope_says_whose_routing_changes(scope: str, changed: set[str]) -> None:
    model = pre_gated("switch_transformers", scope=scope)
    kinds = {
        block.stack.split(".")[0]
        for blocks in moe_blocks(model).values()
        for block in blocks
        if type(block.router).__name__.startswith("PreGated")
    }
    assert kinds == changed


def test_what_a_gate_selected_can_be_asked_for_before_its_block_runs() -> None:
    model = pre_gated("mixtral")
    gates = pre_gate(model)
    assert gates is not None
    selections = [gates.selection_from(f"model.layers.{i}.mlp") for i in range(4)]
    assert [selection is not None for selection in selections] == [True, True, False, False]
    told: list[torch.Tensor] = []
    for layer, selection in enumerate(selections[:2]):
        model.model.layers[layer].mlp.experts.register_forward_hook(
            lambda _m, args, _out, selection=selection: told.append(selection(args[0]))
        )
        model.model.layers[layer + 1].mlp.experts.register_forward_pre_hook(
            lambda _m, args: told.append(args[1])
        )
    forward(model)
    assert told[0].shape == (18, 2)
    assert [torch.equal(a, b) for a, b in zip(told[::2], told[1::2], strict=True)] == [True, True]


def test_gradients_reach_every_gate_the_same_with_and_without_checkpointing() -> None:
    found = []
    for checkpointing in (False, True):
        model = pre_gated("mixtral").train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        forward(model).square().sum().backward()
        found.append([b.router.weight.grad for b in next(iter(moe_blocks(model).values()))])
    for plain, again in zip(*found, strict=True):
        assert plain.abs().max() > 0
        assert torch.equal(plain, again)


def test_router_logits_that_the_losses_are_made_of_are_those_of_the_gates_in_use() -> None:
    model = pre_gated("mixtral").train()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found = model(input_ids=ids, output_router_logits=True)
    blocks = next(iter(moe_blocks(model).values()))
    assert len(found.router_logits) == len(blocks)
    for logits, block in zip(found.router_logits, blocks, strict=True):
        chosen = logits.softmax(-1).topk(2).indices
        router: Any = block.router
        assert torch.equal(chosen, router.chain.selected(router.block))
    assert found.aux_loss > 0


@pytest.mark.parametrize("num_tokens", [3, 9])
def test_a_block_that_runs_without_those_before_it_is_an_error_and_no_guess(num_tokens: int) -> None:
    model = pre_gated("mixtral")
    forward(model)
    with pytest.raises(RuntimeError, match=r"block 1 .*run whole stacks"):
        model.model.layers[1].mlp(torch.randn(2, num_tokens, 64))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"level": 0}, "level 0: a gate looks 1 block ahead or more"),
        ({"level": 1, "scope": "all"}, "scope 'all' is none of decoder, encoder, both"),
        ({"level": 1, "colour": 1}, "colour"),
        ({"scope": "both"}, "level"),
        ("yes", "section 'pgmoe'"),
        ({"level": 1, "gates": [1]}, "gates: from the module path"),
        ({"level": 1, "gates": {"a": ["b"]}}, "gates: from the module path"),
    ],
)
def test_a_broken_section_is_told(section: Any, message: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=message):
        PreGating.of({SECTION: section})


def test_a_gate_map_of_another_model_is_told() -> None:
    model = pre_gated("mixtral")
    section = model.config.pgmoe
    gates = {**section["gates"], "model.layers.2.mlp.gate": "model.layers.0.mlp"}
    other = tiny("mixtral")
    other.config.pgmoe = {**section, "gates": gates}
    with pytest.raises(
        CorruptCheckpoint,
        match=r"does not let gate model\.layers\.2\.mlp\.gate read model\.layers\.0",
    ):
        pre_gate(other)


def test_a_gate_that_the_map_lacks_is_told() -> None:
    other = tiny("mixtral")
    other.config.pgmoe = {"level": 1}
    with pytest.raises(
        CorruptCheckpoint, match=r"lets gate model\.layers\.0\..* read model\.layers\.0\.mlp;"
    ):
        pre_gate(other)


def test_routers_that_accelerate_has_hooked_are_refused_and_not_silently_left(tmp_path: Path) -> None:
    model = pre_gated("mixtral")
    model.save_pretrained(tmp_path)
    spread = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    layers = {f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(3)}
    auto: Any = AutoModelForCausalLM
    hooked = auto.from_pretrained(
        tmp_path, device_map=spread | layers, offload_folder=tmp_path / "offload", dtype=torch.float32
    )
    with pytest.raises(UnsupportedModel, match=r"its forward was replaced .* onto one device first"):
        pre_gate(hooked)


def test_a_model_can_be_copied_between_passes() -> None:
    model = pre_gated("mixtral").train()
    before = forward(model)
    assert torch.equal(forward(copy.deepcopy(model)), before)


def test_a_level_beyond_the_last_block_is_told() -> None:
    with pytest.raises(UnsupportedModel, match=r"level 3: .* has 3 MoE blocks; give at most 2"):
        pre_gated_stacks(tiny("mixtral"), PreGating(level=3))


def test_a_scope_without_blocks_is_told() -> None:
    with pytest.raises(UnsupportedModel, match="has no MoE blocks in its encoder"):
        pre_gated_stacks(tiny("mixtral"), PreGating(level=1, scope="encoder"))


def test_blocks_that_differ_cannot_stand_in_for_one_another() -> None:
    model = tiny("mixtral")
    model.model.layers[1].mlp.gate.top_k = 1
    with pytest.raises(UnsupportedModel, match="differ in their routers"):
        pre_gated_stacks(model, PreGating(level=1))


def test_routers_that_take_more_than_the_input_cannot_be_asked_ahead() -> None:
    with pytest.raises(UnsupportedModel, match="router takes"):
        pre_gated_stacks(tiny("nllb_moe"), PreGating(level=1))


def test_levels_and_scopes_are_checked() -> None:
    with pytest.raises(ConfigError, match="level -1"):
        PreGating(level=-1)
    scope: Any = "everything"
    with pytest.raises(ConfigError, match="scope 'everything'"):
        PreGating(level=1, scope=scope)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    section = PreGating(level=2, scope="both", gates={"a": "b"}, made_from={"model": "x"})
    assert PreGating.of({SECTION: section.to_dict()}) == section
    assert PreGating.of({}) is None
