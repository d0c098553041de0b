from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgmoe.training.padded_rows import GRANULE, pad_rows
from pgmoe.training.trainable import load_whole
from tests.support.finetuning import save_trainable


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["switch_transformers", "nllb_moe"])
def test_padding_changes_neither_outputs_nor_gradients(family: str, tmp_path: Path) -> None:
    folder = save_trainable(family, tmp_path / "m")
    plain, padded = (load_whole(folder, torch.float64) for _ in range(2))
    pad_rows(padded)
    sizes: set[int] = set()
    for name, module in padded.named_modules():
        if ".experts." in name and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    ids = torch.randint(3, 500, (3, 37))
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
