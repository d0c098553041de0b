from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.core import TyperGroup
from typer.main import get_group
from typer.testing import CliRunner

from pgmoe.bench.lines import OurLine
from pgmoe.cli.bench_memory import _beside_twin, _curve
from pgmoe.cli.main import app
from tests.conftest import TinyCheckpoints
from tests.unit.bench.results import made_up_result


def test_show_prints_a_result_as_markdown(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["bench", "show", str(made_up_result().save(tmp_path))])
    assert run.exit_code == 0
    assert run.stdout.startswith("### made-up, 2026-01-02, commit abc1234")


def test_plot_writes_a_picture_beside_the_result(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = made_up_result().save(tmp_path)
    run = CliRunner().invoke(app, ["bench", "plot", str(path)])
    assert run.stdout.strip() == str(path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_a_twin_gets_a_line_and_a_name_of_its_own(tiny: TinyCheckpoints) -> None:
    folder = tiny("olmoe", torch.bfloat16)
    made = _curve("curve", str(folder), folder, [50.0], ["on_demand"], ["policy=lru"], None, "25GB/s", 9)
    own = {"policy": "lru", "emulated_link": "25GB/s"}
    for gating, told in ((None, "speculative"), ("statistical", "statistical")):
        beside = _beside_twin(made, folder, ["policy=lru"], None, "25GB/s", str(folder), gating)
        assert beside.name == f"curve-{folder.name}-25GBs-twin"
        first, twin = beside.lines
        assert first == made.lines[0]
        assert isinstance(twin, OurLine)
        assert twin.name == f"pgmoe, {told} (twin)"
        assert dict(twin.options) == {**own, "model": str(folder), "gating": told}
        assert f"the twin, {folder.name}, is fed the same" in beside.workload
    assert _beside_twin(made, folder, [], None, None, None, None) == made


def test_every_benchmark_has_a_command() -> None:
    bench = get_group(app).commands["bench"]
    assert isinstance(bench, TyperGroup)
    arms = {"default-model", "olmoe-like", "small-moe", "gpu", "compare"}
    assert set(bench.commands) == arms | {
        "batches",
        "curve",
        "guesses",
        "prefetch",
        "profile",
        "reads",
        "policies",
        "show",
        "throughput",
        "plot",
        "variants",
    }
