from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgmoe.training.padded_rows import GRANULE, PaddedRows, pad_rows
from pgmoe.training.trainable import load_trainable, load_whole
from tests.support.finetuning import save_trainable, small_run


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["switch_transformers", "nllb_moe"])
def test_padding_changes_neither_outputs_nor_gradients(family: str, tmp_path: Path) -> None:
    folder = save_trainable(family, tmp_path / "m")
    plain, padded = (load_whole(folder, torch.float64) for _ in range(2))
    assert pad_rows(padded) == pad_rows(padded) > 0
    sizes: set[int] = set()
    for name, module in padded.named_modules():
        if ".experts." in name and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    ids = torch.randint(3, 500, (3, 37), generator=torch.Generator().manual_seed(0))
    losses = []
    for model in (plain, padded):
        model.train(False)
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients(plain).keys() == gradients(padded).keys()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(padded)[name], gradient)
    assert sizes
    assert all(size % GRANULE == 0 for size in sizes)


def test_stacked_experts_are_left_as_they_are(tmp_path: Path) -> None:
    assert pad_rows(load_whole(save_trainable("mixtral", tmp_path / "m"), torch.float32)) == 0


def test_a_model_to_train_has_padded_rows(tmp_path: Path) -> None:
    folder = save_trainable("switch_transformers", tmp_path / "m")
    model = load_trainable(small_run(folder, tmp_path / "data", tmp_path / "out"), folder)
    experts = [
        module for name, module in model.named_modules() if name.rpartition(".")[0].endswith("experts")
    ]
    assert experts
    assert all(isinstance(expert, PaddedRows) for expert in experts)
