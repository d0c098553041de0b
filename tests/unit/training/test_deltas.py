from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pgmoe.errors import CheckpointError, ConfigError
from pgmoe.training.deltas import Deltas
from pgmoe.training.upcycle import upcycle
from tests.support.dense import save_dense

LAYERS, EXPERTS, RANK = 2, 3, 4


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense"))


def random_tensors(dense: Path, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(dense / "model.safetensors")
    width, inner = weights["model.layers.0.mlp.down_proj.weight"].shape
    shapes = {
        "gate.weight": (EXPERTS, width),
        "experts.gate_up_proj_a": (EXPERTS, RANK, width),
        "experts.gate_up_proj_b": (EXPERTS, 2 * inner, RANK),
        "experts.down_proj_a": (EXPERTS, RANK, inner),
        "experts.down_proj_b": (EXPERTS, width, RANK),
    }
    num_layers = sum(name.endswith("mlp.down_proj.weight") for name in weights)
    return {
        f"model.layers.{layer}.mlp.{name}": torch.randn(shape, generator=generator)
        for layer in range(num_layers)
        for name, shape in shapes.items()
    }


def test_what_is_stored_in_8_bits_is_off_by_half_a_step_at_most(dense: Path, tmp_path: Path) -> None:
    tensors = random_tensors(dense)
    Deltas(tensors, {"rank": RANK}).save(tmp_path / "deltas.safetensors")
    found = Deltas.open(tmp_path / "deltas.safetensors")
    assert found.about == {"rank": RANK}
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name.endswith("gate.weight"):
            assert torch.equal(found.tensors[name], tensor.bfloat16().float())
            continue
        axis = 2 if name.endswith("_a") else 1
        step = tensor.abs().amax(axis, keepdim=True) / 127
        assert ((found.tensors[name] - tensor).abs() <= step * 0.501).all()
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "deltas.safetensors").values())
    assert stored < 0.5 * sum(tensor.nbytes for tensor in tensors.values())


def test_a_vector_of_zeros_stays_one(dense: Path, tmp_path: Path) -> None:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in random_tensors(dense).items()}
    Deltas(tensors, {}).save(tmp_path / "deltas.safetensors")
    assert not any(tensor.any() for tensor in Deltas.open(tmp_path / "deltas.safetensors").tensors.values())


def test_each_expert_of_the_upcycled_model_has_its_delta(dense: Path, tmp_path: Path) -> None:
    tensors = random_tensors(dense, seed=3)
    deltas = Deltas(tensors, {})
    options = {"num_experts": EXPERTS, "top_k": 2}
    plain = upcycle(str(dense), tmp_path / "plain", **options).folder
    varied = upcycle(
        str(dense), tmp_path / "varied", **options, edit=deltas.edit, config_entries={"mark": {"a": 1}}
    ).folder
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (plain, varied))
    num_changed = 0
    for name, weight in before.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            expected = weight + torch.bmm(tensors[f"{name}_b"], tensors[f"{name}_a"])
        else:
            expected = tensors.get(name, weight)
        torch.testing.assert_close(after[name], expected)
        num_changed += not torch.equal(after[name], weight)
    assert num_changed == 3 * sum(name.endswith("gate.weight") for name in tensors)
    assert AutoModelForCausalLM.from_pretrained(varied).config.mark == {"a": 1}


def test_deltas_of_another_model_are_told(dense: Path, tmp_path: Path) -> None:
    tensors = random_tensors(dense)
    with pytest.raises(ConfigError, match=r"gate.weight are \(3, .*the model's \(4, "):
        upcycle(str(dense), tmp_path / "a", num_experts=4, edit=Deltas(tensors, {}).edit)
    missing = {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    with pytest.raises(ConfigError, match=r"no deltas of model\.layers\.1\."):
        upcycle(str(dense), tmp_path / "b", num_experts=EXPERTS, edit=Deltas(missing, {}).edit)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deltas.safetensors"
    with pytest.raises(CheckpointError, match="holds no deltas of experts"):
        Deltas.open(path)
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="holds no deltas of experts"):
        Deltas.open(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="holds no deltas of experts"):
        Deltas.open(path)
