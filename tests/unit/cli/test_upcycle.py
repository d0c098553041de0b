from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from pgmoe.cli.main import app
from tests.support.dense import save_dense


def test_stdout_holds_the_json_result_alone(tmp_path: Path) -> None:
    source, out = save_dense(tmp_path / "dense"), tmp_path / "moe"
    options = ["--experts", "3", "--top-k", "1", "--dtype", "bfloat16", "--json"]
    run = CliRunner().invoke(app, ["upcycle", str(source), str(out), *options])
    assert run.exit_code == 0, run.output
    weights = load_file(out / "model.safetensors").values()
    assert json.loads(run.stdout) == {
        "folder": str(out),
        "bytes": sum(tensor.nbytes for tensor in weights),
        "parameters": sum(tensor.numel() for tensor in weights),
        "dtype": "bfloat16",
        "experts": 3,
        "top_k": 1,
    }
    assert "Upcycling" in run.stderr


def test_the_default_models_folder_is_printed_at_once_when_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "pgmoe" / "smollm2-8x135m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    run = CliRunner().invoke(app, ["default-model"])
    assert (run.exit_code, run.stdout, run.stderr) == (0, f"{folder}\n", "")
    run = CliRunner().invoke(app, ["default-model", str(folder), "--json"])
    assert json.loads(run.stdout) == {"folder": str(folder), "built": False}
