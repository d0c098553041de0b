"""A config file is checked before it is served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import MixtralConfig

from deployments.check_config import check
from pgmoe.errors import BudgetTooSmall, CheckpointError, ConfigError
from tests.support.checkpoints import DECODER, save_tiny, tiny_model
from tests.support.runs import smallest_budget

REPOSITORY_CONFIG = Path(__file__).parents[2] / "config.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("mixtral", tmp_path_factory.mktemp("checked") / "tiny", torch.float32)


def write(folder: Path, **engine: Any) -> Path:
    content = yaml.safe_load(REPOSITORY_CONFIG.read_text())
    content["applications"][0]["args"]["engine"] = engine
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


def test_a_good_config_says_what_it_would_serve(tmp_path: Path, model: Path) -> None:
    (line,) = check(write(tmp_path, model=str(model), device_memory="50%"))
    assert "MixtralForCausalLM" in line
    assert "holds 12 of 24 experts" in line


def test_a_misspelt_option_is_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="device_memroy"):
        check(write(tmp_path, model=str(model), device_memroy="50%"))


def test_a_budget_too_small_is_found_before_anything_starts(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BudgetTooSmall, match="smallest that works"):
        check(write(tmp_path, model=str(model), device_memory="10KiB"))


def test_a_missing_model_is_found_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        check(write(tmp_path, model=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "bfloat16"}, "experts are stored as float32"),
        ({"max_model_len": 10**7}, "model's context is"),
        ({"host_memory": "4KiB"}, "host_memory '4KiB' holds no expert"),
        ({"device": "gpu"}, "device 'gpu'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_model_or_this_machine_does_not_allow_is_found_before_anything_starts(
    tmp_path: Path, model: Path, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(write(tmp_path, model=str(model), **option))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_a_gpu_that_is_missing_here_is_remarked_for_the_head_of_a_cluster_needs_none(
    tmp_path: Path, model: Path
) -> None:
    _, remark = check(write(tmp_path, model=str(model), device="cuda"))
    assert remark.startswith("warning: device 'cuda'")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about a machine without a GPU")
def test_a_budget_that_is_too_small_on_a_gpu_only_is_remarked(tmp_path: Path) -> None:
    """There the input embedding is on the device, too: 16 MiB."""
    model = tmp_path / "model"
    shape = {**DECODER, "vocab_size": 65536}
    config = MixtralConfig(**shape, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2)
    tiny_model(config, torch.float32).save_pretrained(model)
    smallest = smallest_budget(model)
    served, remark = check(write(tmp_path, model=str(model), device_memory=smallest))
    assert "holds 2 of 24 experts" in served
    assert remark.startswith("warning: on a GPU device_memory")
    with pytest.raises(BudgetTooSmall):
        check(write(tmp_path, model=str(model), device_memory=smallest, device="cuda"))


@pytest.mark.parametrize("text", ["applications: [", "applications: []", "something: else"])
def test_a_file_that_is_no_serve_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        check(tmp_path / "config.yaml")


def test_the_command_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployments.check_config", str(tmp_path / "absent.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
