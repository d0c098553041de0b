from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.errors import BudgetTooSmall, CheckpointError
from pgmoe.models.loader import load_model, read_plan
from tests.conftest import QuantisedCheckpoints, TinyCheckpoints
from tests.support.checkpoints import FAMILIES, tiny_config


def info(folder: Path, *options: str) -> dict[str, Any]:
    run = CliRunner().invoke(app, ["info", str(folder), "--json", *options])
    assert run.exit_code == 0, run.output
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_are_those_of_the_model(tiny: TinyCheckpoints, family: str) -> None:
    folder = tiny(family, torch.bfloat16)
    found, config = info(folder), tiny_config(family)
    plan = read_plan(str(folder))
    loaded = load_model(plan, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert found["dtype"] == "bfloat16"
    assert found["experts_stored_as"] == "plain"
    assert found["moe_layers"] == len(loaded.sockets)
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    assert found["experts_per_layer"] == (num_experts or getattr(config, "n_routed_experts", 8))
    assert found["dense_bytes"] == loaded.loaded_bytes
    stored = sum(t.nbytes for k, t in plan.checkpoint.tensors.items() if k not in plan.dense_keys)
    assert found["total_bytes"] == loaded.loaded_bytes + found["embedding_left_in_file_bytes"] + stored


def test_quantised_experts_are_counted_as_they_are_stored(quantised: QuantisedCheckpoints) -> None:
    found = info(quantised("mxfp4 gpt_oss"))
    assert found["experts_stored_as"] == "mxfp4"
    assert found["dtype"] == "bfloat16"
    matrices, biases = (128 * 64 + 64 * 64), 128 + 64
    assert found["expert_bytes"] == matrices // 2 + matrices // 32 + 2 * biases
    assert info(quantised("fp8 deepseek in part"))["experts_stored_as"] == "fp8_block, plain"


def test_every_budget_shown_is_what_it_buys(tiny: TinyCheckpoints) -> None:
    found = info(tiny("olmoe"))  # 48 experts in 3 layers, 4 for a token
    fits = {fit["budget"]: fit for fit in found["fits"]}
    assert {b: f["slots"] for b, f in fits.items()} == {"100%": 48, "75%": 36, "50%": 24, "25%": 12, "10%": 4}
    assert fits["50%"]["share"] == 0.5
    slot_bytes = (fits["100%"]["device_bytes"] - fits["50%"]["device_bytes"]) / 24
    smallest = found["smallest_device_memory_bytes"]
    assert smallest > found["dense_bytes"] + 4 * slot_bytes
    (fit,) = info(tiny("olmoe"), "--device-memory", str(smallest))["fits"]
    assert (fit["slots"], fit["device_bytes"]) == (4, smallest)
    assert math.isclose(fit["share"], 4 / 48)


def test_what_a_gpu_would_hold_is_told_without_one(tiny: TinyCheckpoints) -> None:
    on_cpu, on_gpu = (info(tiny("olmoe"), "--device", device) for device in ("cpu", "cuda:1"))
    assert on_gpu["dense_bytes"] == on_cpu["dense_bytes"] + on_cpu["embedding_left_in_file_bytes"]
    assert on_gpu["embedding_left_in_file_bytes"] == 0 < on_cpu["embedding_left_in_file_bytes"]
    assert on_gpu["total_bytes"] == on_cpu["total_bytes"]


def test_people_get_a_table(tiny: TinyCheckpoints) -> None:
    run = CliRunner().invoke(app, ["info", str(tiny("mixtral"))])
    assert run.exit_code == 0, run.output
    assert "MixtralForCausalLM" in run.stdout
    assert "100%" in run.stdout
    assert "KiB" in run.stdout


def test_what_is_wrong_is_raised_for_the_command_to_tell(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["info", str(tiny("mixtral")), "--device-memory", "1%"])
    assert isinstance(run.exception, BudgetTooSmall)
    run = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert isinstance(run.exception, CheckpointError)
