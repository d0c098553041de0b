from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from pgmoe.pre_gating import SECTION
from pgmoe.training.deltas import Deltas
from pgmoe.training.finetune import finetune
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.pregate import pregate
from pgmoe.training.upcycle import upcycle
from recipes.ship import ship
from tests.support.dense import save_dense


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, experts trained for it, and two sets of gates."""
    work = tmp_path_factory.mktemp("ship")
    upcycle(str(save_dense(work / "dense")), work / "equal", num_experts=4)
    parquet.write_table(pa.table({"text": ["The quick brown fox jumps over it. " * 40]}), work / "t.parquet")
    finetune(
        FinetuneConfig(
            model=str(work / "equal"),
            data=(work / "t.parquet",),
            out=work / "experts",
            rank=2,
            steps=3,
            batch_size=2,
            length=16,
            learning_rate=0.05,
            precision="fp32",
            device="cpu",
        )
    )
    pregate(str(work / "experts"), work / "pre-gated")
    ship(work / "experts", work / "pre-gated", work / "experts", work / "out")
    return work


@pytest.mark.parametrize(("kind", "source"), [("conventional", "experts"), ("pre-gated", "pre-gated")])
def test_what_ships_rebuilds_the_trained_model(work: Path, tmp_path: Path, kind: str, source: str) -> None:
    deltas = Deltas.open(work / "out" / "experts.safetensors") | Deltas.open(
        work / "out" / f"{kind}.safetensors"
    )
    upcycle(str(work / "dense"), tmp_path / "built", num_experts=4, edit=deltas.edit)
    built, trained, equal = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "built", work / source, work / "equal")
    )
    for name, weight in trained.items():
        moved = (weight - equal[name]).abs().max()
        assert (built[name] - weight).abs().max() <= 0.03 * moved + 0.01 * weight.abs().max() * (moved > 0)
    assert any(not torch.equal(trained[name], equal[name]) for name in trained if "experts" in name)
    assert (SECTION in deltas.about) == (kind == "pre-gated")
    assert deltas.about["rank"] == 2
