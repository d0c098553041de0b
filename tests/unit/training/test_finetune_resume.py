"""Interrupted trainings: killed for good, and gone on with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pgmoe.errors import ConfigError
from pgmoe.training.checkpoints import MARKER
from pgmoe.training.finetune import finetune
from pgmoe.training.finetune_config import FinetuneConfig
from tests.support.finetuning import save_pairs, save_text, save_trainable, small_run

KILLED_AFTER, CHECKPOINT_STEPS = 8, 3
TIMES = {"seconds", "tokens_per_s"}
CHILD = """
import os, pathlib, signal, sys, torch
from pgmoe.training.finetune import finetune
from tests.support.finetuning import small_run

torch.set_num_threads(int(sys.argv[4]))
model, data, out = map(pathlib.Path, sys.argv[1:4])
options = eval(sys.argv[5])

def progress(step):
    if step.number == int(sys.argv[6]):
        os.kill(os.getpid(), signal.SIGKILL)

finetune(small_run(model, data, out, **options), progress)
"""


class Killed(Exception):
    """Stands for a kill in this process."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("data") / "text.parquet")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trainable("mixtral", tmp_path_factory.mktemp("mixtral"))


def history(out: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in pq.read_table(out / "training.parquet").to_pylist()
    ]


def interrupt(config: FinetuneConfig, after: int) -> Path:
    """Stop a run after a step; its work folder."""

    def progress(step: Any) -> None:
        if step.number == after:
            raise Killed

    with pytest.raises(Killed):
        finetune(config, progress)
    return config.out.parent / f".{config.out.name}.partial"


@pytest.mark.parametrize(
    ("family", "more"),
    [("mixtral", {"rank": 2, "accumulation": 2, "precision": "bf16"}), ("switch_transformers", {})],
)
def test_a_killed_training_goes_on_to_the_same_result_to_the_bit(
    family: str, more: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    model = save_trainable(family, tmp_path / "m")
    data = save_pairs(tmp_path / "pairs.parquet") if family == "switch_transformers" else text
    options = {"steps": 11, "batch_size": 2, "checkpoint_steps": CHECKPOINT_STEPS, **more}
    whole = small_run(model, data, tmp_path / "whole", **options)
    finetune(whole)
    killed = small_run(model, data, tmp_path / "killed", **options)
    arguments = [model, data, killed.out, torch.get_num_threads(), repr(options), KILLED_AFTER]
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert not killed.out.exists()
    steps: list[int] = []
    finetune(killed, lambda step: steps.append(step.number))
    assert steps == list(range(7, 12)), "it went on from the checkpoint of step 6"
    assert history(killed.out) == history(whole.out)
    one, other = (load_file(c.out / "model.safetensors") for c in (whole, killed))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert not (tmp_path / ".killed.partial").exists()


def test_a_half_written_checkpoint_is_removed_and_the_one_before_it_used(
    mixtral: Path, text: Path, tmp_path: Path
) -> None:
    config = small_run(mixtral, text, tmp_path / "out", checkpoint_steps=2)
    work = interrupt(config, after=5)
    (complete,) = work.glob("checkpoint-*")
    assert complete.name == "checkpoint-4"
    half = work / "checkpoint-5"
    half.mkdir()
    (half / "trained.safetensors").write_bytes((complete / "trained.safetensors").read_bytes()[:1000])
    steps: list[int] = []
    finetune(config, lambda step: steps.append(step.number))
    assert steps == [5, 6]


def test_without_its_marker_a_checkpoint_does_not_count(mixtral: Path, text: Path, tmp_path: Path) -> None:
    config = small_run(mixtral, text, tmp_path / "out", checkpoint_steps=2)
    work = interrupt(config, after=3)
    (work / "checkpoint-2" / MARKER).unlink()
    steps: list[int] = []
    finetune(config, lambda step: steps.append(step.number))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_another_command_is_refused_with_what_differs(mixtral: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(small_run(mixtral, text, out, checkpoint_steps=1), after=2)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.003, is 0\.1; .*remove the folder"):
        finetune(small_run(mixtral, text, out, learning_rate=0.1))
    finetune(small_run(mixtral, text, out, checkpoint_steps=2))  # which does not change the result


def test_other_data_under_the_same_name_is_refused(mixtral: Path, tmp_path: Path) -> None:
    data = save_text(tmp_path / "text.parquet")
    config = small_run(mixtral, data, tmp_path / "out", checkpoint_steps=1)
    interrupt(config, after=2)
    save_pairs(data)
    with pytest.raises(ConfigError, match=r"content of .*text\.parquet was"):
        finetune(config)


def test_a_start_that_failed_does_not_bind_the_name(mixtral: Path, text: Path, tmp_path: Path) -> None:
    interrupt(small_run(mixtral, text, tmp_path / "out"), after=2)
    assert finetune(small_run(mixtral, text, tmp_path / "out", steps=1)).num_steps == 1


@pytest.mark.parametrize("of", ["model", "teacher"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "model.safetensors"])
def test_another_model_or_teacher_under_the_same_name_is_refused(
    of: str, name: str, mixtral: Path, text: Path, tmp_path: Path
) -> None:
    folders = {part: Path(shutil.copytree(mixtral, tmp_path / part)) for part in ("model", "teacher")}
    out, teacher = tmp_path / "out", str(folders["teacher"])
    config = small_run(folders["model"], text, out, teacher=teacher, checkpoint_steps=1)
    interrupt(config, after=2)
    path = folders[of] / name
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        time_ns = path.stat().st_mtime_ns + 1_000_000
        os.utime(path, ns=(time_ns, time_ns))
    with pytest.raises(ConfigError, match=rf"content of .*{of}/{name} was"):
        finetune(config)


def test_after_training_only_the_result_is_written_again(
    mixtral: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run(mixtral, text, tmp_path / "out", steps=2)
    with monkeypatch.context() as broken:
        broken.setattr("pgmoe.training.finetune.write_result", lambda *_: interrupt_now())
        with pytest.raises(Killed):
            finetune(config)
    steps: list[int] = []
    done = finetune(config, lambda step: steps.append(step.number))
    assert steps == []
    assert done.num_steps == 2


def test_after_the_last_checkpoint_no_step_more_is_trained(
    mixtral: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 5, "evaluate": save_pairs(tmp_path / "unseen.parquet")}  # an epoch has three steps
    whole = small_run(mixtral, text, tmp_path / "whole", **options)
    finetune(whole)
    killed = small_run(mixtral, text, tmp_path / "killed", **options)
    with monkeypatch.context() as broken:
        broken.setattr("pgmoe.training.finetune.keep_trained", lambda *_: interrupt_now())
        with pytest.raises(Killed):
            finetune(killed)
    steps: list[int] = []
    assert finetune(killed, lambda step: steps.append(step.number)).num_steps == 5
    assert steps == []
    assert history(killed.out) == history(whole.out)
    one, other = (load_file(c.out / "model.safetensors") for c in (whole, killed))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def interrupt_now() -> None:
    raise Killed
