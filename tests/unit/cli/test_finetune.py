from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pgmoe.cli.console import training_bar
from pgmoe.cli.finetune import finetune
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.step_figures import Step
from tests.support.finetuning import save_pairs, save_parquet, save_trainable

RUN = ["--length", "24", "--batch-size", "4", "--steps", "2", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trainable("mixtral", tmp_path_factory.mktemp("model"))


def test_stdout_holds_the_json_result_alone(model: Path, tmp_path: Path) -> None:
    data, out = save_pairs(tmp_path / "pairs.parquet"), tmp_path / "out"
    run = CliRunner().invoke(
        app, ["finetune", str(model), str(data), str(data), str(out), *RUN, "--rank", "2", "--json"]
    )
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert (result["folder"], result["num_steps"], result["plotted"]) == (str(out), 2, True)
    assert result["loss"] == pq.read_table(out / "training.parquet")["loss"].to_pylist()[-1]
    assert "2/2  loss" in run.stderr


def test_rows_that_were_cut_or_left_out_are_told(model: Path, tmp_path: Path) -> None:
    rows = {"prompt": ["a?", "b?", "long " * 60], "completion": ["so", "so " * 60, "so"]}
    data = save_parquet(tmp_path / "d.parquet", **rows)
    run = CliRunner().invoke(
        app, ["finetune", str(model), str(data), str(tmp_path / "out"), *RUN, "--gates-only"]
    )
    assert run.exit_code == 0, run.output
    assert "1 rows cut to the length" in run.stderr
    assert "1 rows left out: nothing to learn in it" in run.stderr


def test_every_option_of_a_training_but_its_workers_can_be_given() -> None:
    options = {field.name for field in fields(FinetuneConfig)}
    given = set(inspect.signature(finetune).parameters)
    assert given == options - {"out", "workers"} | {"gates_only", "as_json"}


def test_the_home_folder_is_found_in_all_paths(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data", "unseen"):
        save_pairs(tmp_path / f"{name}.parquet")
    paths = ["~/data.parquet", "~/out", "--eval", "~/unseen.parquet"]
    run = CliRunner().invoke(app, ["finetune", str(model), *paths, *RUN])
    assert run.exit_code == 0, run.exception
    assert "on unseen data" in run.stdout


def test_the_new_folder_must_be_named(model: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["finetune", str(model), str(tmp_path / "d.parquet")])
    assert isinstance(run.exception, ConfigError)
    assert "and then the folder to write" in str(run.exception)


def test_on_a_terminal_there_is_a_bar_with_loss_rate_speed_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(stderr=True, force_terminal=True, width=140)
    with training_bar("Training m", console) as progress:
        progress(Step(3, 10, 2.5, 1e-4, 1234.4, 75.2))
    shown = capsys.readouterr().err
    assert "3/10" in shown
    assert "loss 2.5000  rate 1.00e-04  1,234 tokens/s  0:01:15 left" in shown
