"""Workers that share a training, without Ray: each is a process that calls `train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pgmoe.training.finetune import finetune
from tests.support.finetuning import ANSWERS, QUESTIONS, save_parquet, save_text, save_trainable, small_run
from tests.support.ports import free_port

WORKER = """
import pathlib, sys
from pgmoe.training.finetune import train
from tests.support.finetuning import small_run

model, data, unseen, work = map(pathlib.Path, sys.argv[1:])
options = {"steps": 1, "aux_weight": 0.0}  # balance is each worker's own
train(small_run(model, data, work / "out", evaluate=unseen, batch_size=2, workers=2, **options), work)
"""


@pytest.mark.parametrize("num_rows", [1, 3])
def test_held_out_rows_count_once_however_many_workers_share_them(num_rows: int, tmp_path: Path) -> None:
    model, data = save_trainable("mixtral", tmp_path / "m"), save_text(tmp_path / "t.parquet")
    unseen = save_parquet(
        tmp_path / "unseen.parquet",
        prompt=QUESTIONS[:num_rows],
        completion=[answer * (n + 1) for n, answer in enumerate(ANSWERS[:num_rows])],
    )
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, (model, data, unseen, work))],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for worker in workers:
        try:
            _, errors = worker.communicate(timeout=120)
        finally:
            worker.kill()
        assert worker.returncode == 0, errors.decode()
    history = json.loads((work / "log.json").read_text())["history"]
    (shared,) = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    options = {"steps": 1, "aux_weight": 0.0, "batch_size": 4}
    alone = finetune(small_run(model, data, tmp_path / "alone", evaluate=unseen, **options))
    assert shared == pytest.approx(alone.eval_loss, rel=1e-4)
