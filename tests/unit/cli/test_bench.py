from __future__ import annotations

from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_group
from typer.testing import CliRunner

from pgmoe.cli.main import app
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
        "plot",
    }
