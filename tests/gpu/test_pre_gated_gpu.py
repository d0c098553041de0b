"""Pre-gated models and their training on an accelerator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pgmoe.training.finetune import finetune
from pgmoe.training.pregate import pregate
from tests.conftest import TinyCheckpoints
from tests.support.finetuning import save_text, save_trainable, small_run
from tests.support.runs import Prompts, run, smallest_budget

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]
PROMPTS = Prompts.random(seed=31)
on_device = partial(run, device="auto")


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_offloaded_is_resident_to_the_bit(
    tiny: TinyCheckpoints, family: str, level: int, tmp_path: Path
) -> None:
    pregate(str(tiny(family, torch.bfloat16)), tmp_path / "new", level=level)
    whole = on_device(tmp_path / "new", PROMPTS, num_tokens=50, device_memory="100%", host_memory="0")
    for budget in (smallest_budget(tmp_path / "new", "auto"), "50%"):
        found = on_device(tmp_path / "new", PROMPTS, num_tokens=50, device_memory=budget, host_memory="50%")
        found.same_as(whole)
        assert found.stats.prefetch_bytes["useful"] + found.stats.prefetch_bytes["late"] > 0


@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"train": "gates"}], ids=["all", "rank", "gates"])
def test_training_lowers_the_loss_and_repeats_itself(options: dict[str, Any], tmp_path: Path) -> None:
    model, text = save_trainable("mixtral", tmp_path / "m"), save_text(tmp_path / "t.parquet")
    pregate(str(model), tmp_path / "new")
    found = []
    for name in "ab":
        run_ = small_run(tmp_path / "new", text, tmp_path / name, steps=20, device="auto", **options)
        finetune(run_)
        found.append(pq.read_table(tmp_path / name / "training.parquet")["loss"].to_pylist())
    assert found[0][-1] < found[0][0]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
