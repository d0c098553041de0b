from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.errors import BudgetTooSmall, ConfigError, UnsupportedModel
from tests.conftest import TinyCheckpoints
from tests.support.routings import routing, trace_of


def plan(folder: Path, *options: str) -> dict[str, Any]:
    run = CliRunner().invoke(app, ["plan", str(folder), "--json", *options])
    assert run.exit_code == 0, run.output
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_a_slow_link_limits_small_budgets_and_compute_the_whole(tiny: TinyCheckpoints) -> None:
    # 48 experts of 36 KiB, 12 for a token: half of them missed at 50%.
    found = plan(tiny("olmoe"), "--bandwidth", "3600KiB/s", "--compute-tokens-per-s", "20")
    rows = {row["budget"]: row for row in found["budgets"]}
    assert found["kind"] == "prediction"
    assert list(rows) == ["100%", "75%", "50%", "25%", "10%"]
    assert (rows["100%"]["limit"], rows["100%"]["tokens_per_s"]) == ("compute", 20)
    assert (rows["50%"]["slots"], rows["50%"]["limit"]) == (24, "link")
    assert rows["50%"]["tokens_per_s"] == pytest.approx(3600 / (6 * 36))
    assert rows["25%"]["tokens_per_s"] < rows["50%"]["tokens_per_s"]


def test_what_is_not_given_is_measured_and_a_budget_of_ones_own_stands_last(tiny: TinyCheckpoints) -> None:
    found = plan(tiny("mixtral"), "--device-memory", "100MiB")
    assert found["bandwidth"] > 0
    assert found["compute_s"] > 0
    own = found["budgets"][-1]
    assert (own["budget"], own["slots"]) == ("100MiB", 24)
    assert own["device_bytes"] <= 100 * 2**20


def test_people_are_told_that_it_is_a_prediction_and_get_a_picture(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    picture = tmp_path / "plan.png"
    options = ["--bandwidth", "1MB/s", "--compute-tokens-per-s", "20", "--plot", str(picture)]
    run = CliRunner().invoke(app, ["plan", str(tiny("mixtral")), *options])
    assert run.exit_code == 0, run.output
    assert "Predicted, not measured" in run.stdout
    assert "64 tokens use 8.0 of 8 experts (stream all)" in " ".join(run.stdout.split())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_trace_gives_the_hit_rates(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Layers that use their first two experts again and again: a few slots hold them all."""
    prompt = [routing(layer, *([(e, e + 1)] * 7)) for layer, e in ((0, 0), (1, 2), (2, 4))]
    steps = [("a", prompt)] + [("a", [routing(0, (0, 1)), routing(1, (1, 0)), routing(2, (0, 1))])] * 10
    trace_of(steps, num_layers=3, num_experts=8).save(file := tmp_path / "routing.parquet")
    given = ["--bandwidth", "3600KiB/s", "--compute-tokens-per-s", "20"]
    uniform = {row["budget"]: row for row in plan(tiny("mixtral"), *given)["budgets"]}
    found = plan(tiny("mixtral"), *given, "--trace", str(file))
    assert found["routing"] == "routing of routing.parquet"
    rows = {row["budget"]: row for row in found["budgets"]}
    assert rows["100%"]["hit_rate"] == rows["50%"]["hit_rate"] == 1  # six experts, whatever the prompt used
    assert rows["10%"]["hit_rate"] < 1
    assert uniform["50%"]["hit_rate"] == pytest.approx(0.5)
    run = CliRunner().invoke(app, ["plan", str(tiny("olmoe")), *given, "--trace", str(file)])
    assert isinstance(run.exception, ConfigError)
    assert "the trace is of tiny" in str(run.exception)


def test_what_is_wrong_is_raised_for_the_command_to_tell(tiny: TinyCheckpoints) -> None:
    run = CliRunner().invoke(app, ["plan", str(tiny("mixtral")), "--bandwidth", "fast"])
    assert isinstance(run.exception, ConfigError)
    run = CliRunner().invoke(app, ["plan", str(tiny("mixtral")), "--device-memory", "1MiB"])
    assert isinstance(run.exception, BudgetTooSmall)


def test_a_gpu_machines_figures_give_the_offline_policy(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    machine = {
        "gpu_memory": 1e9,
        "cpu_memory": 4e9,
        "link_bandwidth": 1e9,
        "gpu_bandwidth": 1e11,
        "cpu_bandwidth": 1e10,
        "gpu_flops": 1e12,
        "cpu_flops": 1e11,
    }
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(machine))
    given = ["--bandwidth", "1MB/s", "--compute-tokens-per-s", "20", "--offline", str(file)]
    run = CliRunner().invoke(app, ["plan", str(tiny("mixtral")), *given])
    assert run.exit_code == 0, run.output
    said = " ".join(run.stdout.split())
    assert "by MoE-Lightning's model, predicted for a system that streams whole layers" in said
    found = plan(tiny("mixtral"), *given)
    assert "by MoE-Lightning's model" in found["offline"]
    assert [batch["tokens"] for batch in found["batches_of_uniform_routing"]] == [1, 4, 16, 64]
    run = CliRunner().invoke(app, ["plan", str(tiny("qwen2_moe")), *given])
    assert isinstance(run.exception, UnsupportedModel)
    file.write_text(json.dumps({**machine, "gpu_memory": 1000}))
    run = CliRunner().invoke(app, ["plan", str(tiny("mixtral")), *given])
    assert "not one sequence fits" in " ".join(run.stdout.split())
    file.write_text(json.dumps({"gpu_memory": 1e9}))
    run = CliRunner().invoke(app, ["plan", str(tiny("mixtral")), *given])
    assert isinstance(run.exception, ConfigError)
    assert "cpu_bandwidth" in str(run.exception)
