from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.errors import UnsupportedModel
from tests.support.damage import add_code
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


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_refused_even_when_the_user_would_allow_it(
    tmp_path: Path, file: str
) -> None:
    source = save_dense(tmp_path / "dense")
    ran, evil = add_code(source)
    kind = {"config.json": {"model_type": "evil"}, "tokenizer_config.json": {"tokenizer_class": "Evil"}}[file]
    content = {**json.loads((source / file).read_text()), "auto_map": evil, **kind}
    (source / file).write_text(json.dumps(content))
    run = CliRunner().invoke(app, ["upcycle", str(source), str(tmp_path / "moe")], input="y\ny\ny\n")
    assert not ran.exists()
    assert isinstance(run.exception, UnsupportedModel), run.output
    assert "code from a checkpoint is never run" in str(run.exception)
