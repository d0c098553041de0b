from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from pgmoe.cli.main import app
from tests.conftest import TinyCheckpoints


def test_it_says_how_many_gates_select_ahead(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = tmp_path / "new"
    run = CliRunner().invoke(app, ["pregate", str(tiny("mixtral")), str(out), "--level", "1"])
    assert run.exit_code == 0, run.output
    assert "2 of 3 gates select ahead" in run.stdout
    assert "Pre-gating" in run.stderr


def test_stdout_holds_the_json_result_alone(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = tmp_path / "new"
    options = ["--level", "2", "--start", "own", "--json"]
    run = CliRunner().invoke(app, ["pregate", str(tiny("mixtral")), str(out), *options])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert (found["folder"], found["level"]) == (str(out), 2)
    assert found["gates"] == json.loads((out / "config.json").read_text())["pgmoe"]["gates"]


def test_level_0_copies(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["pregate", str(tiny("mixtral")), str(tmp_path / "new"), "--level", "0"])
    assert run.exit_code == 0, run.output
    assert "a copy" in run.stdout
