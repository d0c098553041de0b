from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from pgmoe.training import step_figures
from pgmoe.training.finetune import finetune
from pgmoe.training.moe_trainer import MoeTrainer
from tests.support.finetuning import save_text, save_trainable, small_run


def test_preparation_does_not_count_into_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = save_trainable("mixtral", tmp_path / "m"), save_text(tmp_path / "t.parquet")
    now = [0.0]
    create = MoeTrainer.create_optimizer

    def slow(self: Any, *given: Any) -> Any:
        now[0] += 1000
        return create(self, *given)

    def step(self: Any, *given: Any) -> Any:
        now[0] += 1
        return train(self, *given)

    train = MoeTrainer.training_step
    monkeypatch.setattr(step_figures, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(MoeTrainer, "create_optimizer", slow)
    monkeypatch.setattr(MoeTrainer, "training_step", step)
    finetune(small_run(model, data, tmp_path / "out", steps=5))  # an epoch has three
    assert pq.read_table(tmp_path / "out" / "training.parquet")["seconds"].to_pylist() == [1, 2, 3, 4, 5]
