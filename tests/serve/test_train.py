"""Fine-tuning by several workers of Ray Train, in a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from deployments.train import _run, read_config
from pgmoe.errors import ConfigError, TrainingDiverged
from pgmoe.training.finetune import finetune
from pgmoe.training.trainable import load_whole
from tests.support.finetuning import save_text, save_trainable, small_run

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "length": 32,
    "steps": 8,
    "learning_rate": 3e-3,
    "checkpoint_steps": 5,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="pgmoe-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)  # Ray puts sockets below it, whose paths must be short


def train_together(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump({**OPTIONS, **options}))
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "local",  # never a cluster that happens to run on this machine
        "RAY_AUTH_MODE": "disabled",  # or it writes a token file into the home folder
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "deployments.train", str(folder / "config.yaml")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_workers_learn_what_one_would(folder: Path) -> None:
    pytest.importorskip("ray.train", reason="needs the extra `train`", exc_type=ImportError)
    model, data = save_trainable("mixtral", folder / "model"), save_text(folder / "text.parquet")
    files = {"model": str(model), "data": [str(data)], "out": str(folder / "two")}
    run = train_together(folder, **files, workers=2, batch_size=2, accumulation=2, aux_weight=0.0)
    assert run.returncode == 0, run.stderr
    finetune(small_run(model, data, folder / "one", **{**OPTIONS, "batch_size": 8}, aux_weight=0.0))
    two, one = (pq.read_table(folder / name / "training.parquet").to_pylist() for name in ("two", "one"))
    for name in ("loss", "ce", "grad_norm", "tokens"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    assert two[-1]["loss"] < two[0]["loss"] - 0.5
    load_whole(folder / "two", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no options"),
        ("{", "not YAML"),
        ("{model: m, data: [d], out: o, learning: 1}", "unknown learning; options are"),
        ("{model: m, data: [d], out: o, rank: many}", "rank: .*integer"),
        ("{model: m, data: [d], out: o, workers: 0}", "workers is 0; give 1 or more"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "config.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"model: \xff")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(tmp_path / "config.yaml")


def test_home_folders_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("{model: ~/model, data: [~/d], evaluate: ~/e, out: ~/o}")
    config = read_config(Path("~/config.yaml"))
    assert config.model == str(tmp_path / "model")
    assert (config.data, config.evaluate, config.out) == ((tmp_path / "d",), tmp_path / "e", tmp_path / "o")
    (tmp_path / "config.yaml").write_text("{model: m, data: [~nobody-here/d], out: o}")
    with pytest.raises(ConfigError, match="~nobody-here"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("of_a_worker", [TrainingDiverged("the loss is nan"), ValueError("no")])
def test_a_workers_error_of_ours_is_raised_with_its_cause(
    of_a_worker: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra `train`")
    pytest.importorskip("ray.train", reason="needs the extra `train`", exc_type=ImportError)
    from ray.train import TrainingFailedError

    class Failed(TrainingFailedError):  # type: ignore[misc]
        def __init__(self) -> None:
            self.worker_failures = {0: of_a_worker}

    class Trainer:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> None:
            raise Failed

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    with pytest.raises((TrainingDiverged, Failed)) as caught:
        _run(small_run(tmp_path, tmp_path, tmp_path / "out"), tmp_path)
    if isinstance(of_a_worker, TrainingDiverged):
        assert caught.value is of_a_worker
        assert isinstance(caught.value.__cause__, Failed)
    else:
        assert isinstance(caught.value, Failed)
        assert caught.value.__cause__ is None


def test_paths_hold_wherever_a_worker_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("{model: model, teacher: own/er, data: [d], out: o}")
    config = read_config(tmp_path / "config.yaml")
    assert (config.model, config.teacher) == (str(tmp_path / "model"), "own/er")
    assert (config.data, config.out) == ((tmp_path / "d",), tmp_path / "o")
