"""Experts kept in host memory: one arena, pinned where an accelerator copies from it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from pgmoe.experts.stores.base import ExpertStore
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.memory import page_aligned


class HostStore:
    """The host tier, holding every expert. See ExpertStore for the contract of its methods."""

    tier = "host"

    def __init__(self, layers: tuple[ExpertLayer, ...], *, pinned: bool) -> None:
        """Reserve memory for all experts of all layers; `fill` reads them."""
        self._slot_bytes = max(layer.layout.slot_bytes for layer in layers)
        self._experts = [ExpertId(i, e) for i, layer in enumerate(layers) for e in range(layer.num_experts)]
        self._place = {expert: place for place, expert in enumerate(self._experts)}
        self._arena = page_aligned(self._slot_bytes * len(self._experts), pinned=pinned)
        self._starts: dict[ExpertId, dict[str, int]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of host memory held."""
        return self._arena.nbytes

    def fill(
        self, source: ExpertStore, *, num_readers: int, progress: Callable[[int], None] | None = None
    ) -> None:
        """Read every expert from `source`; `progress` gets the bytes of each. Raises ExpertReadError."""

        def load(expert: ExpertId) -> int:
            self._starts[expert] = source.starts(expert)
            return source.read(expert, self.blob(expert))

        with ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-fill") as pool:
            for num_bytes in pool.map(load, self._experts):
                if progress is not None:  # in the caller's thread: it need not be safe for several
                    progress(num_bytes)

    def blob(self, expert: ExpertId) -> Tensor:
        """The expert's slot-sized piece of the arena (uint8)."""
        begin = self._place[expert] * self._slot_bytes
        return self._arena[begin : begin + self._slot_bytes]

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """The same places as in the store that it was filled from."""
        return self._starts[expert]

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """Copy the whole blob; on an accelerator it is enqueued on the current stream and returns at once."""
        slot.copy_(self.blob(expert), non_blocking=True)
        return slot.nbytes

    def close(self) -> None:
        """Nothing to give back before the arena itself goes."""
