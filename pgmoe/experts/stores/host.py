"""Experts kept in host memory: all of them or some, pinned where an accelerator copies from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from torch import Tensor

from pgmoe.experts.stores.base import ExpertStore, Tier
from pgmoe.layout import PAGE, ExpertId, ExpertLayer
from pgmoe.memory import page_aligned


class HostStore:
    """The host tier, holding the experts it is told to. See ExpertStore for the contract of its methods."""

    tiers: frozenset[Tier] = frozenset({"host"})

    def __init__(self, layers: tuple[ExpertLayer, ...], held: Sequence[ExpertId], *, pinned: bool) -> None:
        """Reserve memory for the experts `held`; `fill` reads them."""
        slot_bytes = max(layer.layout.slot_bytes for layer in layers)
        self._blobs: dict[ExpertId, Tensor] = {}
        self._starts: dict[ExpertId, dict[str, int]] = {}
        left = iter(held)
        for num_slots in split_into_blocks(len(held), slot_bytes):
            block = page_aligned(slot_bytes * num_slots, pinned=pinned).view(num_slots, slot_bytes)
            self._blobs.update(zip(islice(left, num_slots), block, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of host memory held."""
        return sum(blob.nbytes for blob in self._blobs.values())

    def __contains__(self, expert: ExpertId) -> bool:
        """Whether it is held here."""
        return expert in self._blobs

    def fill(
        self, source: ExpertStore, *, num_readers: int, progress: Callable[[int], None] | None = None
    ) -> None:
        """Read every held expert from `source`; `progress` gets the bytes of each. Raises ExpertReadError."""

        def load(expert: ExpertId) -> int:
            self._starts[expert] = source.starts(expert)
            return source.read(expert, self._blobs[expert])

        with ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-fill") as pool:
            for num_bytes in pool.map(load, self._blobs):
                if progress is not None:  # in the caller's thread: it need not be safe for several
                    progress(num_bytes)

    def tier_of(self, expert: ExpertId) -> Tier:
        """Host, for every one held."""
        return "host"

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """The same places as in the store that it was filled from."""
        return self._starts[expert]

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """Copy the whole blob."""
        blob = self._blobs[expert]
        if slot.is_cpu:  # by numpy: this is a reader thread, which must not enter OpenMP, as torch would
            np.copyto(slot.numpy(), blob.numpy())
        else:
            slot.copy_(blob, non_blocking=True)
        return slot.nbytes

    def close(self) -> None:
        """Nothing to give back before the memory itself goes."""


def split_into_blocks(num_slots: int, slot_bytes: int) -> list[int]:
    """In how many slots each to allocate `num_slots`, so that little is lost.

    torch rounds every pinned allocation up to a power of two, which may double a large one. Blocks that just
    fill a power of two, and ever smaller ones for the rest, lose about a slot each at most.
    """
    blocks = []
    block_bytes: int = 1 << (32 * slot_bytes).bit_length()
    while num_slots:
        fitting = max(1, (block_bytes - PAGE) // slot_bytes)  # page_aligned takes a page more to align it
        if fitting <= num_slots:
            blocks.append(fitting)
            num_slots -= fitting
        else:
            block_bytes //= 2
    return blocks
