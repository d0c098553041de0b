"""Untied Switch Transformers: published with one table for both stacks, by transformers 5 with two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgmoe.models.loader import load_model, read_plan
from pgmoe.training.trainable import load_whole
from tests.support.checkpoints import tiny_config, tiny_model

STACKS = ("encoder", "decoder")


def untied(folder: Path, *, one_table: bool) -> dict[str, torch.Tensor]:
    config = tiny_config("switch_transformers")
    config.tie_word_embeddings = False
    tiny_model(config, torch.float32).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(7)
    for stack in STACKS:
        key = f"{stack}.embed_tokens.weight"
        if one_table:
            tensors.pop(key, None)
        else:
            tensors[key] = torch.randn(tensors["shared.weight"].shape, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("one_table", [True, False])
@pytest.mark.parametrize("stack", STACKS)
def test_each_stack_looks_tokens_up_in_the_table_that_is_stored_for_it(
    stack: str, one_table: bool, tmp_path: Path
) -> None:
    tensors = untied(tmp_path / "model", one_table=one_table)
    stored = tensors["shared.weight" if one_table else f"{stack}.embed_tokens.weight"]
    plan = read_plan(str(tmp_path / "model"))
    served = load_model(plan, dtype=torch.float32, device=torch.device("cpu")).model
    trained = load_whole(tmp_path / "model", torch.float32)
    for model in (served, trained):
        table = model.get_submodule(stack).get_input_embeddings()
        assert torch.equal(table.weight.detach(), stored)


def test_one_table_is_trained_as_one(tmp_path: Path) -> None:
    untied(tmp_path / "model", one_table=True)
    names = [name for name, _ in load_whole(tmp_path / "model", torch.float32).named_parameters()]
    assert [name for name in names if "embed_tokens" in name or name.startswith("shared")] == [
        "shared.weight"
    ]
