"""What a store is: the owner of every expert's bytes in the tier below the device."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from pgmoe.layout import ExpertId

Tier = Literal["disk", "host"]
"""Where a store has an expert's bytes."""


class ExpertStore(Protocol):
    """Reads experts into slots. `read` may be called from several threads at once."""

    tiers: frozenset[Tier]
    """Every answer that `tier_of` may give."""

    def tier_of(self, expert: ExpertId) -> Tier:
        """Where `read` takes this expert from; always the same answer."""
        ...

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """Where in a slot `read` puts each tensor of this expert, in bytes; always the same answer."""
        ...

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """Fill `slot` (uint8, page-aligned, slot_bytes long) and return the bytes moved.

        From disk the slot has to be host memory. Blocks until done, but for a copy from host memory to an
        accelerator, which is enqueued on its current stream. Raises ExpertReadError; the slot's content is
        then undefined.
        """
        ...

    def close(self) -> None:
        """Give back files and memory. Nothing is read after it."""
        ...
