"""Untied Switch Transformers: one table for both stacks, as T5 has it, or one for each, as transformers 5."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pgmoe.errors import CorruptCheckpoint
from pgmoe.models.loader import load_model, read_plan
from pgmoe.training.finetune import finetune
from pgmoe.training.trainable import load_whole
from tests.support.damage import edit_config
from tests.support.finetuning import save_pairs, save_trainable, small_run

SHARED, ENCODER, DECODER = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
TABLES = {SHARED, ENCODER, DECODER}


def untied(folder: Path, kept: Collection[str]) -> dict[str, Tensor]:
    """A checkpoint with these tables, all different, and an output layer of its own; its tensors."""
    save_trainable("switch_transformers", folder)
    edit_config(folder, tie_word_embeddings=False)
    file = folder / "model.safetensors"
    stored = load_file(file)
    shape, generator = stored[SHARED].shape, torch.Generator().manual_seed(7)
    tensors = {key: tensor for key, tensor in stored.items() if key not in TABLES}
    for key in (*sorted(kept), "lm_head.weight"):
        tensors[key] = torch.randn(shape, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize(
    "kept", [{SHARED}, TABLES, {SHARED, ENCODER}, {SHARED, DECODER}], ids=lambda kept: f"{len(kept)} stored"
)
def test_each_stack_looks_tokens_up_in_its_own_table_if_it_is_stored(kept: set[str], tmp_path: Path) -> None:
    tensors = untied(tmp_path / "model", kept)
    plan = read_plan(str(tmp_path / "model"))
    served = load_model(plan, dtype=torch.float32, device=torch.device("cpu")).model
    for model in (served, load_whole(tmp_path / "model", torch.float32)):
        for stack, key in (("encoder", ENCODER), ("decoder", DECODER)):
            table = model.get_submodule(stack).get_input_embeddings()  # type: ignore[operator]
            assert torch.equal(table.weight.detach(), tensors[key if key in kept else SHARED])


def test_a_model_without_the_table_that_a_stack_needs_is_refused(tmp_path: Path) -> None:
    untied(tmp_path / "model", {DECODER})
    with pytest.raises(CorruptCheckpoint, match=r"no weights .* shared\.weight"):
        load_whole(tmp_path / "model", torch.float32)
    with pytest.raises(CorruptCheckpoint, match=r"no weights .* shared\.weight"):
        read_plan(str(tmp_path / "model"))


@pytest.mark.parametrize("kept", [{SHARED}, TABLES], ids=["one table", "a table a stack"])
def test_training_keeps_the_tables_that_there_are(kept: set[str], tmp_path: Path) -> None:
    before = untied(tmp_path / "model", kept)
    finetune(small_run(tmp_path / "model", save_pairs(tmp_path / "pairs.parquet"), tmp_path / "out"))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys()
    used = kept - {SHARED} or kept
    assert all(not torch.equal(after[key], before[key]) for key in used)
