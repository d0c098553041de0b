"""Page-aligned memory: what O_DIRECT reads into and pinned copies leave from."""

from __future__ import annotations

import torch
from torch import Tensor

from pgmoe.layout import PAGE


def page_aligned(num_bytes: int, *, device: torch.device | None = None, pinned: bool = False) -> Tensor:
    """Uninitialised uint8 memory whose address is a multiple of PAGE."""
    raw = torch.empty(
        num_bytes + PAGE, dtype=torch.uint8, device=device or torch.device("cpu"), pin_memory=pinned
    )
    skip = -raw.data_ptr() % PAGE
    return raw[skip : skip + num_bytes]
