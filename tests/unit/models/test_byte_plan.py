from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.layout import ExpertLayer
from pgmoe.models.loader import read_plan
from tests.conftest import QuantisedCheckpoints, TinyCheckpoints
from tests.support.checkpoints import ENCODER_DECODER_FAMILIES, FAMILIES
from tests.support.damage import edit_config, edit_weights
from tests.support.quantised import KINDS

EXPERT = "model.layers.1.block_sparse_moe.experts.5"
Weights = dict[str, Tensor]


def planned_bytes(layer: ExpertLayer, expert: int) -> dict[str, bytes]:
    """An expert's tensors as the plan says they lie in the files, by ordinary reads."""
    found = {region.name: bytearray(region.nbytes) for region in layer.layout.regions}
    for extent in layer.extents[expert]:
        with open(extent.path, "rb") as file:
            file.seek(extent.offset)
            data = file.read(extent.nbytes)
        found[extent.tensor][extent.tensor_offset : extent.tensor_offset + extent.nbytes] = data
    return {name: bytes(data) for name, data in found.items()}


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


FUSED_NAMES = {"up": ("gate_up_proj", "up_proj"), "down": ("down_proj",)}


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ENCODER_DECODER_FAMILIES])
def test_planned_bytes_are_transformers_own_parameters(
    tiny: TinyCheckpoints, family: str, max_shard_size: str
) -> None:
    folder = tiny(family, torch.bfloat16, max_shard_size)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    layers = read_plan(str(folder)).layers
    experts = [n for n, _ in model.named_modules() if n.endswith(".experts")]
    assert [layer.name for layer in layers] == experts
    for layer in layers:
        module = model.get_submodule(layer.name)
        parameters = dict(module.named_parameters())
        for expert in range(layer.num_experts):
            planned = planned_bytes(layer, expert)
            assert len(planned) == len(parameters)
            for name, data in planned.items():
                base = name.removesuffix("_bias")
                suffix = name.removeprefix(base)
                (fused,) = (parameters[n + suffix] for n in FUSED_NAMES[base] if n + suffix in parameters)
                assert data == as_bytes(fused[expert])


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("family", ENCODER_DECODER_FAMILIES)
def test_planned_bytes_are_the_tensors_of_each_expert(
    tiny: TinyCheckpoints, family: str, max_shard_size: str
) -> None:
    folder = tiny(family, torch.float32, max_shard_size)
    weights = {k: t for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}
    up, down = ("wi", "wo") if family == "switch_transformers" else ("fc1", "fc2")
    layers = read_plan(str(folder)).layers
    num_experts = 0
    for layer in layers:
        for expert in range(layer.num_experts):
            prefix = f"{layer.name}.expert_{expert}"
            planned = planned_bytes(layer, expert)
            assert planned["up"] == as_bytes(weights[f"{prefix}.{up}.weight"])
            assert planned["down"] == as_bytes(weights[f"{prefix}.{down}.weight"])
            num_experts += 1
    assert num_experts == len([k for k in weights if k.endswith(f".{up}.weight") and "expert_" in k])


def stored_pieces(weights: Weights, name: str, expert: int, tensor: str) -> list[Tensor]:
    """The checkpoint's tensors for one of an expert's in the plan, one after another."""
    end = "_scale_inv" if tensor.endswith("_scale") else ""
    base = tensor.removesuffix("_scale")
    if f"{name}.gate_up_proj_blocks" in weights:  # gpt_oss
        fused = {"up": "gate_up_proj", "down": "down_proj"}
        behind = {"up": "_blocks", "up_scale": "_scales", "up_bias": "_bias"}
        behind |= {k.replace("up", "down"): v for k, v in behind.items()}
        return [weights[f"{name}.{fused[base.removesuffix('_bias')]}{behind[tensor]}"][expert]]
    names = {"up": ("gate_proj", "up_proj"), "down": ("down_proj",)}[base]
    return [weights[f"{name}.{expert}.{n}.weight{end}"] for n in names]


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("kind", ["fp8 deepseek odd", "fp8 deepseek in part", "mxfp4 gpt_oss"])
def test_quantised_experts_are_planned_as_they_are_stored(
    quantised: QuantisedCheckpoints, kind: str, max_shard_size: str
) -> None:
    folder = quantised(kind, max_shard_size)
    weights = {k: t for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}
    for layer in read_plan(str(folder)).layers:
        for expert in range(layer.num_experts):
            planned = planned_bytes(layer, expert)
            for region in layer.layout.regions:
                pieces = stored_pieces(weights, layer.name, expert, region.name)
                assert {piece.dtype for piece in pieces} == {region.dtype}
                assert planned[region.name] == b"".join(map(as_bytes, pieces))


def test_a_layers_encoding_types_and_shapes_are_its_own(quantised: QuantisedCheckpoints) -> None:
    first, last = read_plan(str(quantised("fp8 deepseek in part"))).layers
    assert (first.encoding, last.encoding) == ("fp8_block", "plain")
    assert {r.name: (r.shape, r.dtype) for r in first.layout.regions} == {
        "up": ((288, 200), torch.float8_e4m3fn),
        "up_scale": ((2, 2, 2), torch.float32),
        "down": ((200, 144), torch.float8_e4m3fn),
        "down_scale": ((1, 2, 2), torch.float32),
    }
    assert {r.name: r.dtype for r in last.layout.regions} == {"up": torch.bfloat16, "down": torch.bfloat16}
    assert (first.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)
    assert first.up_width == last.up_width == 288


@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_dense_weights_share_out_a_quantised_checkpoint(
    quantised: QuantisedCheckpoints, kind: str
) -> None:
    plan = read_plan(str(quantised(kind)))
    dense = sum(plan.checkpoint.tensors[key].nbytes for key in plan.dense_keys)
    extents = [e for layer in plan.layers for experts in layer.extents for e in experts]
    whole = sum(tensor.nbytes for tensor in plan.checkpoint.tensors.values())
    assert dense + sum(e.nbytes for e in extents) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_and_dense_weights_share_out_the_checkpoint(tiny: TinyCheckpoints, family: str) -> None:
    plan = read_plan(str(tiny(family)))
    dense = sum(plan.checkpoint.tensors[key].nbytes for key in plan.dense_keys)
    extents = [e for layer in plan.layers for experts in layer.extents for e in experts]
    whole = sum(tensor.nbytes for tensor in plan.checkpoint.tensors.values())
    assert dense + sum(e.nbytes for e in extents) == whole
    assert len({(e.path, e.offset) for e in extents}) == len(extents)


@pytest.fixture
def folder(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("mixtral"), tmp_path / "model")


def transpose(weights: Weights) -> None:
    weights[f"{EXPERT}.w2.weight"] = weights[f"{EXPERT}.w2.weight"].T.contiguous()


def swap_shapes(weights: Weights) -> None:
    weights[f"{EXPERT}.w1.weight"] = torch.zeros(95, 64)
    weights[f"{EXPERT}.w3.weight"] = torch.zeros(98, 64)


def lose_one(weights: Weights) -> None:
    del weights[f"{EXPERT}.w3.weight"]


def lose_layer(weights: Weights) -> None:
    for key in [k for k in weights if k.startswith("model.layers.2.") and "experts" in k]:
        del weights[key]


def cast_one(dtype: torch.dtype) -> Callable[[Weights], None]:
    def cast(weights: Weights) -> None:
        weights[f"{EXPERT}.w1.weight"] = weights[f"{EXPERT}.w1.weight"].to(dtype)

    return cast


def cast_all(weights: Weights) -> None:
    for key in [k for k in weights if "experts" in k]:
        weights[key] = weights[key].to(torch.int8)


DAMAGE: dict[str, tuple[Callable[[Weights], None], type[CheckpointError], str]] = {
    "a transposed tensor": (
        transpose,
        CorruptCheckpoint,
        rf"{EXPERT}\.w2\.weight are \[\(96, 64\)\], .*\(64, 96\)",
    ),
    "tensors too small and too large": (swap_shapes, CorruptCheckpoint, r"\[\(95, 64\), \(98, 64\)\]"),
    "a missing tensor": (lose_one, CorruptCheckpoint, "7 of 8 experts"),
    "a layer without experts": (
        lose_layer,
        CorruptCheckpoint,
        r"no weights for 2 expert tensors, e\.g\. .*\.2\.",
    ),
    "integers": (cast_all, UnsupportedModel, "stored as int8; .* convert the checkpoint"),
    "one double": (cast_one(torch.float64), UnsupportedModel, "stored as float32, float64"),
    "one half": (cast_one(torch.bfloat16), UnsupportedModel, "stored as bfloat16, float32"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_experts_that_cannot_be_served_are_named(folder: Path, damage: str) -> None:
    change, kind, message = DAMAGE[damage]
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message) as error:
        read_plan(str(folder))
    assert type(error.value) is kind
    assert str(folder) in str(error.value)


def test_a_fused_tensor_of_another_shape_is_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("gpt_oss"), tmp_path / "model")
    key = "model.layers.0.mlp.experts.down_proj"
    edit_weights(folder, lambda w: w.update({key: w[key].reshape(16, -1, 64).contiguous()}))
    with pytest.raises(
        CorruptCheckpoint, match=rf"{key} is \(16, 32, 64\), the config asks for \(8, 64, 64\)"
    ):
        read_plan(str(folder))


@pytest.mark.parametrize("num_experts", [4, 7, 9, 16])
def test_a_config_with_another_number_of_experts_is_refused(folder: Path, num_experts: int) -> None:
    edit_config(folder, num_local_experts=num_experts)
    with pytest.raises(CorruptCheckpoint, match=rf"8 of {num_experts} experts"):
        read_plan(str(folder))


@pytest.mark.parametrize("width", [48, 95, 192])
def test_a_config_with_another_expert_width_is_refused(folder: Path, width: int) -> None:
    edit_config(folder, intermediate_size=width)
    with pytest.raises(CorruptCheckpoint, match=rf"the config asks for \({2 * width}, 64\)"):
        read_plan(str(folder))


def test_names_and_reasons_are_given_for_an_unknown_stored_form(
    tiny: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sideways = WeightConverter(
        source_patterns=[".experts.*.w1.weight", ".experts.*.w3.weight"],
        target_patterns=".experts.gate_up_proj",
        operations=[MergeModulelist(dim=0), Concatenate(dim=2)],
    )

    def mapping(model: transformers.PreTrainedModel) -> list[object]:
        kept = [
            m
            for m in get_model_conversion_mapping(model)
            if getattr(m, "target_patterns", None) != sideways.target_patterns
        ]
        return [sideways, *kept]

    monkeypatch.setattr("pgmoe.models.byte_plan.get_model_conversion_mapping", mapping)
    with pytest.raises(
        UnsupportedModel, match="needs MergeModulelist, Concatenate; save it with save_pretrained"
    ):
        read_plan(str(tiny("mixtral")))
