"""Of experts that are equally likely torch leaves open which are chosen; our kernel takes the first ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def choose_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch do as the kernel does, in all that chooses the largest of some."""

    def topk(x: Tensor, k: int, dim: int = -1, *_: object, **__: object) -> torch.return_types.topk:
        values, indices = torch.sort(x, dim=dim, descending=True, stable=True)
        return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))

    monkeypatch.setattr(torch, "topk", topk)
    monkeypatch.setattr(Tensor, "topk", topk)
