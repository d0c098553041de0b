from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, Qwen3MoeConfig

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.models.loader import load_model, read_plan
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import DECODER, FAMILIES, tiny_model
from tests.support.damage import WEIGHTS, cut, edit_config, edit_weights

CPU = torch.device("cpu")
NORM = "model.norm.weight"


@pytest.fixture
def folder(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("mixtral"), tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_has_its_dense_weights_alone_and_the_planned_size(
    tiny: TinyCheckpoints, family: str, dtype: torch.dtype
) -> None:
    plan = read_plan(str(tiny(family, dtype)))
    loaded = load_model(plan, dtype=dtype, device=CPU)
    tensors = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    assert not [n for n in tensors if ".experts." in n and "shared_expert" not in n]
    assert {t.device for t in tensors.values()} == {CPU}
    assert loaded.loaded_bytes == plan.loaded_bytes(CPU) == sum(t.nbytes for t in tensors.values())
    assert not loaded.model.training
    assert [s.name for s in loaded.sockets] == [layer.name for layer in loaded.layers]
    by_name = plan.checkpoint.tensors
    matching = [k for k in plan.dense_keys if k in tensors]
    assert matching
    for key in matching:
        assert torch.equal(tensors[key], by_name[key][...].to(tensors[key].dtype))


def test_dense_weights_stored_in_another_type_are_counted_as_loaded(folder: Path) -> None:
    def widen(weights: dict[str, torch.Tensor]) -> None:
        for key in weights:
            if "experts" not in key:
                weights[key] = weights[key].double()

    before = read_plan(str(folder)).dense_bytes
    edit_weights(folder, widen)
    plan = read_plan(str(folder))
    assert plan.dense_bytes == before
    assert load_model(plan, dtype=torch.float32, device=CPU).loaded_bytes == plan.loaded_bytes(CPU) < before


def test_weights_that_the_model_has_no_place_for_cost_nothing(folder: Path) -> None:
    before = read_plan(str(folder)).dense_bytes
    edit_weights(folder, lambda w: w.update({"model.layers.9.extra.weight": torch.zeros(1000)}))
    assert read_plan(str(folder)).dense_bytes == before


def test_loaded_weights_stay_when_the_checkpoint_is_overwritten(folder: Path) -> None:
    plan = read_plan(str(folder))
    model = load_model(plan, dtype=torch.float32, device=CPU).model
    maps = Path("/proc/self/maps").read_text()
    before = {n: p.clone() for n, p in model.named_parameters()}
    path = folder / WEIGHTS
    path.write_bytes(b"\0" * path.stat().st_size)
    assert str(path) not in maps
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


READ = """
import sys, torch
from pgmoe.models.loader import load_model, read_plan

for _ in range(2):  # the first time, Python also reads transformers' modules
    before = int(open("/proc/self/io").read().split()[1])
    load_model(read_plan(sys.argv[1]), dtype=torch.float32, device=torch.device("cpu"))
print(int(open("/proc/self/io").read().split()[1]) - before)
"""


def test_loading_reads_no_expert(tmp_path: Path) -> None:
    config = MixtralConfig(
        **{**DECODER, "num_hidden_layers": 2},
        intermediate_size=1024,
        num_local_experts=16,
        num_experts_per_tok=2,
    )
    tiny_model(config, torch.float32).save_pretrained(tmp_path)
    plan = read_plan(str(tmp_path))
    size = (tmp_path / WEIGHTS).stat().st_size
    assert plan.dense_bytes < size / 10
    command = [sys.executable, "-c", READ, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert plan.loaded_bytes(CPU) <= int(run.stdout) < size / 5


def refusal(folder: Path, kind: type[CheckpointError]) -> str:
    with pytest.raises(CheckpointError) as error:
        read_plan(str(folder))
    assert type(error.value) is kind
    assert str(folder) in str(error.value)
    return str(error.value)


def test_a_missing_dense_weight_is_found_before_anything_is_loaded(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop(NORM))
    assert f"no weights for 1 parameters, e.g. {NORM}" in refusal(folder, CorruptCheckpoint)


def test_a_dense_weight_of_another_shape_is_found_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_weights(folder, lambda weights: weights.update({NORM: torch.ones(65)}))
    assert f"{NORM} is (65,), the config asks for (64,)" in refusal(folder, CorruptCheckpoint)
    assert capsys.readouterr().err == ""


def test_a_file_cut_between_plan_and_load_is_named(folder: Path) -> None:
    plan = read_plan(str(folder))
    cut(folder / WEIGHTS, 60_000)
    with pytest.raises(CorruptCheckpoint, match=rf"{WEIGHTS}: ends inside tensor"):
        load_model(plan, dtype=torch.float32, device=CPU)


def test_a_file_that_goes_between_plan_and_load_is_named(folder: Path) -> None:
    plan = read_plan(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(CorruptCheckpoint, match=rf"{WEIGHTS}: No such file"):
        load_model(plan, dtype=torch.float32, device=CPU)


CONFIGS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "unknown type": ({"model_type": "nonsense"}, UnsupportedModel, "knows no model_type 'nonsense'"),
    "no architecture": ({"architectures": None}, UnsupportedModel, "architecture none"),
    "unknown architecture": ({"architectures": ["NoModel"]}, UnsupportedModel, "['NoModel']"),
    "no class": ({"architectures": ["pipelines"]}, UnsupportedModel, "['pipelines']"),
    "no name": ({"architectures": [3]}, UnsupportedModel, "[3]"),
    "no generation": ({"architectures": ["MixtralModel"]}, UnsupportedModel, "a ...ForCausalLM does"),
    "text as a number": ({"hidden_size": "wide"}, CorruptCheckpoint, "hidden_size"),
    "negative": ({"hidden_size": -64}, CorruptCheckpoint, "config.json: no MixtralForCausalLM can be built"),
    "no heads": ({"num_attention_heads": 0}, CorruptCheckpoint, "config.json: no MixtralForCausalLM"),
    "unknown activation": ({"hidden_act": "nothing"}, CorruptCheckpoint, "KeyError: 'nothing'"),
    "more layers": ({"num_hidden_layers": 4}, CorruptCheckpoint, "no weights for 2 expert tensors"),
    "vocabulary": ({"vocab_size": 300}, CorruptCheckpoint, "the config asks for (300, 64)"),
    "no experts": ({"num_local_experts": 0}, CorruptCheckpoint, "a token uses 2 of 0 experts"),
    "no expert used": ({"num_experts_per_tok": 0}, CorruptCheckpoint, "a token uses 0 of 8 experts"),
    "too many used": ({"num_experts_per_tok": 9}, CorruptCheckpoint, "a token uses 9 of 8 experts"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_served_is_refused_with_the_reason(folder: Path, case: str) -> None:
    changes, kind, message = CONFIGS[case]
    edit_config(folder, **changes)
    assert message in refusal(folder, kind)


def test_a_dense_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    tiny_model(LlamaConfig(**DECODER, intermediate_size=96), torch.float32).save_pretrained(tmp_path)
    assert "`pgmoe upcycle` makes one of a dense Llama" in refusal(tmp_path, UnsupportedModel)


def test_a_moe_family_without_any_sparse_layer_is_refused(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(**DECODER, intermediate_size=96, mlp_only_layers=[0, 1, 2])
    tiny_model(config, torch.float32).save_pretrained(tmp_path)
    assert "has no routed experts" in refusal(tmp_path, UnsupportedModel)


@pytest.mark.parametrize("content", ["{", "[]", '{"max_new_tokens": -3}'])
def test_a_broken_generation_config_is_named(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    assert "generation_config.json" in refusal(folder, CorruptCheckpoint)


def test_the_generation_config_of_the_folder_is_used(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    model = load_model(read_plan(str(folder)), dtype=torch.float32, device=CPU).model
    assert model.generation_config.eos_token_id == [7, 9]


@pytest.mark.parametrize("family", ["mixtral", "switch_transformers"])
def test_loading_leaves_transformers_own_classes_and_messages_as_they_were(
    tiny: TinyCheckpoints, family: str
) -> None:
    from transformers.utils import logging

    folder = tiny(family)
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    plan = read_plan(str(folder))
    load_model(plan, dtype=torch.float32, device=CPU)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    whole = plan.model_class.from_pretrained(folder)
    assert [n for n, _ in whole.named_parameters() if "experts" in n]
