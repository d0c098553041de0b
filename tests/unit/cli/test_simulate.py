from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from tests.unit.simulation.conftest import random_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    random_trace(0, num_steps=30).save(path)
    return path


def run(*arguments: str) -> str:
    """What `pgmoe simulate` prints."""
    result = CliRunner().invoke(
        app, ["simulate", *arguments], catch_exceptions=False, env={"COLUMNS": "120", "NO_COLOR": "1"}
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_a_line_for_each_policy_and_budget(trace: Path) -> None:
    shown = run(str(trace), "--bandwidth", "4GB/s", "--budget", "50%", "--budget", "6")
    assert "30 forward passes of 2 sequences" in shown
    assert "at 4 GB/s" in shown
    for policy in ("belady", "lru", "lfu", "lifo", "prospect"):
        lines = [line for line in shown.splitlines() if f" {policy} " in line]
        assert [line.split()[:2] for line in lines] == [["12", "(50%)"], ["6", "(25%)"]]


def test_json_and_a_plot(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    wanted = [
        "--policy",
        "lru",
        "--budget",
        "25%",
        "--budget",
        "50%",
        "--pools",
        "per-layer",
        "--pools",
        "global",
    ]
    shown = run(str(trace), "--json", "--plot", str(picture), *wanted)
    outcomes = json.loads(shown)["outcomes"]
    assert {(o["policy"], o["pools"]) for o in outcomes} == {
        (policy, pools) for policy in ("belady", "lru") for pools in ("per-layer", "global")
    }
    assert {o["num_slots"] for o in outcomes} == {6, 12}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_says_what_to_install(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'pgmoe\[bench\]'"):
        run(str(trace), "--plot", str(tmp_path / "p.png"))


@pytest.mark.parametrize(
    ("plot", "fault"),
    [("nowhere/p.png", "there is no folder"), ("p.foo", r"ends in .*\.png"), (".", "a folder")],
)
def test_a_plot_that_cannot_be_written_is_refused(trace: Path, tmp_path: Path, plot: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot write .*{fault}"):
        run(str(trace), "--plot", str(tmp_path / plot))
