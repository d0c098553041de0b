"""The device's expert slots."""

from __future__ import annotations

import torch
from torch import Tensor

from pgmoe.memory import page_aligned


class SlotArena:
    """One allocation, cut into `num_slots` page-aligned pieces of `slot_bytes` (a multiple of PAGE)."""

    def __init__(self, num_slots: int, slot_bytes: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.slot_bytes = slot_bytes
        self._memory = page_aligned(num_slots * slot_bytes, device=device)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self._memory.device

    def slot(self, index: int) -> Tensor:
        """Slot `index` as uint8 (slot_bytes,)."""
        return self._memory[index * self.slot_bytes : (index + 1) * self.slot_bytes]
