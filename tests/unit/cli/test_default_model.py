from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.errors import ConfigError

ROOT = Path(__file__).parents[3]
NAME = "smollm2-8x135m-pregated"


def stand_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_folder_is_printed_at_once_when_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = stand_in(tmp_path / "pgmoe" / NAME)
    run = CliRunner().invoke(app, ["default-model"])
    assert (run.exit_code, run.stdout, run.stderr) == (0, f"{folder}\n", "")


def test_a_folder_can_be_named_and_json_says_whether_it_was_built(tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "mine")
    run = CliRunner().invoke(app, ["default-model", str(folder), "--json"])
    assert json.loads(run.stdout) == {"folder": str(folder), "built": False}


def test_a_folder_with_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "mine")
    (folder / "config.json").write_text('{"pgmoe_default_model": "pre-gated"}')
    with pytest.raises(ConfigError, match="holds the pre-gated model, not the conventional one"):
        CliRunner().invoke(
            app, ["default-model", str(folder), "--kind", "conventional"], catch_exceptions=False
        )


def test_command_makefile_and_config_mean_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = stand_in(tmp_path / ".cache" / "pgmoe" / NAME)
    run = CliRunner().invoke(app, ["default-model"])
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    model = config["applications"][0]["args"]["engine"]["model"]
    assert Path(run.stdout.strip()) == folder == Path(model).expanduser()
    assert f"DEFAULT_MODEL := $(HOME)/.cache/pgmoe/{NAME}\n" in (ROOT / "Makefile").read_text()
