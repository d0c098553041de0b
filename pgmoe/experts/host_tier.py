"""Host memory between disk and device: a cache over the disk, or all experts where it holds as many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmoe.errors import ExpertReadError
from pgmoe.experts.cache import ExpertCache, SlotState
from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.layout import PAGE, ExpertId
from pgmoe.memory import page_aligned


@dataclass(eq=False)
class HostBlob:
    """Room for one expert."""

    memory: Tensor
    """uint8 (slot_bytes,), page-aligned, pinned where an accelerator copies from it."""
    copied: torch.Event | None = None
    """On an accelerator: the last copy out of it. It is written again only after that."""


class HostTier:
    """Which expert is in which blob. For the computing thread alone; links fill the blobs and empty them."""

    def __init__(self, num_blobs: int, slot_bytes: int, policy: EvictionPolicy, *, pinned: bool) -> None:
        self._cache = ExpertCache(num_blobs, policy)
        self._blobs: list[HostBlob] = []
        for size in split_into_blocks(num_blobs, slot_bytes):
            block = page_aligned(slot_bytes * size, pinned=pinned).view(size, slot_bytes)
            self._blobs += [HostBlob(memory) for memory in block]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory held."""
        return sum(blob.memory.nbytes for blob in self._blobs)

    @property
    def num_blobs(self) -> int:
        """Experts that fit."""
        return len(self._blobs)

    def __len__(self) -> int:
        return len(self._cache)

    def __contains__(self, expert: ExpertId) -> bool:
        """Whether it lies here, ready to be copied."""
        return self._cache.state(expert) is SlotState.READY

    @property
    def in_use(self) -> set[ExpertId]:
        """Experts with a transfer under way."""
        return self._cache.busy

    def has_room(self, expert: ExpertId) -> bool:
        """Whether `reserve` may be called: it lies here, or some blob is free or can be given up now."""
        return expert in self or self._cache.has_room()

    def reserve(self, expert: ExpertId) -> tuple[HostBlob, bool]:
        """The blob for a transfer of this expert, and whether it lies there already. `release` follows."""
        if ready := expert in self:
            self._cache.pin(expert)
        else:
            begun = self._cache.begin(expert)
            assert begun is not None, expert
        return self._blobs[self._cache.slot_of(expert)], ready

    def release(self, expert: ExpertId, *, arrived: bool) -> None:
        """The transfer is over or dropped; `arrived`: the blob holds the expert."""
        if expert in self:
            self._cache.unpin(expert)
        elif arrived:
            self._cache.finish(expert)
            self._cache.pin(expert)  # a use, as is every copy to the device
            self._cache.unpin(expert)
        else:
            self._cache.abandon(expert)

    def forget(self, expert: ExpertId) -> None:
        """Give up its copy, if one lies here that no transfer uses."""
        if expert in self and expert not in self._cache.busy:
            self._cache.drop(expert)

    def fill(
        self,
        experts: Sequence[ExpertId],
        store: ExpertStore,
        *,
        num_readers: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[ExpertId]:
        """Read these, as many as there are free blobs at most; `progress` gets the bytes of each.

        Returns those that were found corrupt and are left out. Raises ExpertReadError for unreadable ones.
        """
        for expert in experts:
            begun = self._cache.begin(expert)
            assert begun is not None, expert

        def load(expert: ExpertId) -> int:
            memory = self._blobs[self._cache.slot_of(expert)].memory
            try:
                num_bytes = store.read(expert, memory)
                store.verify(expert, memory)  # nobody may ever read it again
            except ExpertReadError:
                if store.is_corrupt(expert):
                    return 0
                raise
            return num_bytes

        corrupt = []
        with ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-fill") as pool:
            for expert, num_bytes in zip(experts, pool.map(load, experts), strict=True):
                if not num_bytes:
                    self._cache.abandon(expert)
                    corrupt.append(expert)
                    continue
                self._cache.finish(expert)
                if progress is not None:  # in the caller's thread: it need not be safe for several
                    progress(num_bytes)
        return corrupt

    @property
    def any_memory(self) -> Tensor:
        """Some blob's memory, for measuring."""
        return self._blobs[0].memory

    def blob(self, expert: ExpertId) -> Tensor:
        """The memory of an expert that lies here."""
        return self._blobs[self._cache.slot_of(expert)].memory

    def check_integrity(self) -> None:
        """Assert that the books are right; for tests."""
        self._cache.check_integrity()


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
