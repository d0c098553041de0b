from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.errors import BudgetTooSmall, PromptTooLong, WeightReadError
from pgmoe.models.loader import read_plan
from pgmoe.selftest import read_plainly, run_selftest
from tests.conftest import TinyCheckpoints
from tests.support.damage import WEIGHTS, cut_experts
from tests.support.expert_files import file_bytes, flip_sign_bits, tensor_bytes, write_layers


def config(folder: Path, **options: object) -> EngineConfig:
    return EngineConfig.parse({"model": str(folder), "device": "cpu", "device_memory": "30%", **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "switch_transformers", "nllb_moe"])
@pytest.mark.parametrize("host_memory", ["0", "100%"])
def test_a_whole_model_passes(
    tiny: TinyCheckpoints, family: str, dtype: torch.dtype, host_memory: str
) -> None:
    folder, seen = tiny(family, dtype), []
    report = run_selftest(config(folder, host_memory=host_memory), 5, lambda *told: seen.append(told))
    assert report.passed
    assert report.difference is None
    assert report.resident_equal is True
    assert report.num_layers == len(read_plan(str(folder)).layers)
    assert report.num_tokens == 5
    assert report.num_experts_checked > 5 * report.num_layers / 2
    copied = [(done, total) for what, done, total in seen if what == "experts to host memory"]
    steps = [told for told in seen if told[0] != "experts to host memory"]
    assert steps == [(run, n, 5) for run in ("offloaded run", "resident run") for n in range(1, 6)]
    assert bool(copied) == (host_memory == "100%")
    assert all(done <= total for done, total in copied)


@pytest.mark.parametrize("damaged", [(0,), (2,), (1, 2)], ids=str)
def test_bytes_that_change_in_the_file_are_found_and_the_first_layer_is_named(
    tiny: TinyCheckpoints, tmp_path: Path, damaged: tuple[int, ...]
) -> None:
    folder = shutil.copytree(tiny("mixtral"), tmp_path / "model")
    layers = read_plan(str(folder)).layers

    def damage(run: str, done: int, total: int) -> None:
        if (run, done) == ("offloaded run", 3):  # the experts in host memory are those of before
            for number in damaged:
                flip_sign_bits(layers[number])

    report = run_selftest(config(folder, host_memory="100%"), 6, damage)
    assert not report.passed
    assert report.difference is not None
    assert report.difference.layer == layers[damaged[0]].name
    assert report.difference.call == 3  # the prompt and two tokens were right
    assert report.difference.largest > 0


def test_a_file_cut_during_the_test_is_an_error_that_names_it(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("mixtral"), tmp_path / "model")
    with pytest.raises(WeightReadError, match=WEIGHTS):
        run_selftest(config(folder), 8, lambda _, done, __: done == 1 and bool(cut_experts(folder)))


def test_plain_reads_give_the_files_bytes(tmp_path: Path) -> None:
    for layer in write_layers(tmp_path, dtype=torch.bfloat16):
        for expert in range(layer.num_experts):
            weights = read_plainly(layer, expert, torch.device("cpu"))
            assert tensor_bytes(weights) == file_bytes(layer, expert)
            assert {n: tuple(t.shape) for n, t in weights.items()} == {
                r.name: r.shape for r in layer.layout.regions
            }


def test_a_budget_too_small_and_an_answer_too_long_are_told_as_ever(tiny: TinyCheckpoints) -> None:
    with pytest.raises(BudgetTooSmall):
        run_selftest(config(tiny("mixtral"), device_memory="1%"), 4)
    with pytest.raises(PromptTooLong, match="max_tokens 1000"):
        run_selftest(config(tiny("mixtral")), 1000)
