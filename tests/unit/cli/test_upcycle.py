from __future__ import annotations

import json
from pathlib import Path

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
