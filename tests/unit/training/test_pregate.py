from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pgmoe.errors import ConfigError, UnsupportedModel
from pgmoe.packing.pack import pack
from pgmoe.training import pregate as module
from pgmoe.training.pregate import pregate
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import tiny_config, tiny_model
from tests.support.dense import save_dense
from tests.support.runs import Prompts, run


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def gate(folder: Path, layer: int) -> Tensor:
    return weights(folder)[f"model.layers.{layer}.block_sparse_moe.gate.weight"]


def save_with_norms(folder: Path) -> Path:
    """A tiny Mixtral whose norms differ from layer to layer."""
    model: Any = tiny_model(tiny_config("mixtral"), torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.uniform_(0.5, 2.0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("start", ["next", "own", "fresh"])
@pytest.mark.parametrize("level", [1, 2])
def test_only_gates_that_select_ahead_change(level: int, start: Any, tmp_path: Path) -> None:
    source = save_with_norms(tmp_path / "old")
    done = pregate(str(source), tmp_path / "new", level=level, start=start)
    before, after = weights(source), weights(done.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(level, 3)}


def test_own_starts_from_the_router_of_the_block_that_is_read(tmp_path: Path) -> None:
    source = save_with_norms(tmp_path / "old")
    folder = pregate(str(source), tmp_path / "new", level=2, start="own").folder
    assert torch.equal(gate(folder, 2), gate(source, 0))


def test_next_starts_from_the_old_router_seen_through_the_other_norm(tmp_path: Path) -> None:
    source = save_with_norms(tmp_path / "old")
    folder = pregate(str(source), tmp_path / "new", start="next").folder
    norms = [weights(source)[f"model.layers.{i}.post_attention_layernorm.weight"] for i in range(3)]
    x_ND = torch.randn(50, 64)
    for layer in (1, 2):
        old = x_ND * norms[layer] @ gate(source, layer).t()
        torch.testing.assert_close(x_ND * norms[layer - 1] @ gate(folder, layer).t(), old)


def test_fresh_gates_are_drawn_by_the_seed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folders = [
        pregate(str(tiny("mixtral")), tmp_path / name, start="fresh", seed=seed).folder
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (gate(folder, 1) for folder in folders)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, gate(folders[0], 2))
    assert a.std() == pytest.approx(module.FRESH_SPREAD, rel=0.2)


def test_the_config_says_what_was_done_and_all_other_files_stay(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    source = tiny("mixtral", max_shard_size="200KB")
    folder = pregate(str(source), tmp_path / "new", level=2, start="own", seed=5).folder
    config = json.loads((folder / "config.json").read_text())
    section = config.pop("pgmoe")
    assert config == json.loads((source / "config.json").read_text())
    made_from = section.pop("made_from")
    assert made_from["model"] == source.name
    assert (made_from["start"], made_from["seed"]) == ("own", 5)
    assert section == {
        "level": 2,
        "scope": "decoder",
        "gates": {
            "model.layers.0.mlp.gate": "model.layers.0.mlp",
            "model.layers.1.mlp.gate": "model.layers.1.mlp",
            "model.layers.2.mlp.gate": "model.layers.0.mlp",
        },
    }
    assert {p.name for p in folder.iterdir()} == {p.name for p in source.iterdir()}
    for name in ("generation_config.json", "model.safetensors.index.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_progress_counts_the_bytes(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    done = pregate(str(tiny("mixtral")), tmp_path / "new", progress=lambda *call: calls.append(call))
    assert calls[-1] == (done.num_bytes, done.num_bytes)
    assert done.num_bytes == sum(p.stat().st_size for p in tiny("mixtral").glob("*.safetensors"))


@pytest.mark.parametrize("level", [0, 1])
def test_a_pre_gated_model_is_not_pre_gated_again(level: int, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    pregate(str(tiny("mixtral")), tmp_path / "new")
    with pytest.raises(UnsupportedModel, match="is pre-gated already; name the conventional model"):
        pregate(str(tmp_path / "new"), tmp_path / "again", level=level)


def test_a_pack_is_refused_with_what_to_do(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    pack(str(tiny("mixtral")), tmp_path / "pack")
    with pytest.raises(UnsupportedModel, match="is a pack; name the checkpoint"):
        pregate(str(tmp_path / "pack"), tmp_path / "new")


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no routed experts"):
        pregate(str(save_dense(tmp_path / "dense")), tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": -1}, "level -1"),
        ({"level": 3}, "give at most 2"),
        ({"scope": "encoder"}, "no MoE blocks in its encoder"),
        ({"scope": "all"}, "scope 'all'"),
        ({"start": "best"}, "start 'best' is none of next, own, fresh"),
    ],
)
def test_mistakes_leave_nothing_behind(
    options: dict[str, Any], message: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, UnsupportedModel), match=message):
        pregate(str(tiny("mixtral")), tmp_path / "new", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_refused_before_the_work(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    shutil.copytree(tiny("mixtral"), tmp_path / "new")
    with pytest.raises(ConfigError, match="new"):
        pregate(str(tmp_path / "missing"), tmp_path / "new")


@pytest.mark.parametrize(
    ("family", "bias"), [("deepseek_v3", "gate.e_score_correction_bias"), ("gpt_oss", "router.bias")]
)
def test_biases_of_routers_start_as_their_matrices_do(
    family: str, bias: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    source = tiny(family)
    old = {name: tensor for name, tensor in weights(source).items() if name.endswith(bias)}
    first, second = list(old)[:2]
    own = weights(pregate(str(source), tmp_path / "own", start="own").folder)
    assert torch.equal(own[second], old[first])
    assert not torch.equal(old[second], old[first])
    fresh = weights(pregate(str(source), tmp_path / "fresh", start="fresh").folder)
    assert not fresh[second].any()
    assert torch.equal(fresh[first], old[first])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_keep_the_type_that_they_are_stored_in(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of experts in half precision, with gates in full."""
    model: Any = tiny_model(tiny_config("mixtral"), dtype)
    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    stored = {k: v.float() * 1.001 if "gate.weight" in k else v for k, v in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})
    folder = pregate(str(tmp_path / "old"), tmp_path / "new", start="own").folder
    assert torch.equal(gate(folder, 1), gate(tmp_path / "old", 0))
    assert gate(folder, 1).dtype == torch.float32


def test_a_pack_of_a_pre_gated_model_is_pre_gated(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    pregate(str(tiny("olmoe")), tmp_path / "new")
    pack(str(tmp_path / "new"), tmp_path / "pack")
    prompts = Prompts.random(seed=3)
    plain = run(tmp_path / "new", prompts, device_memory="100%")
    run(tmp_path / "pack", prompts, device_memory="40%").same_as(plain)
