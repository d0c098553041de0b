"""What a store is: the owner of every expert's bytes in the tier below the device."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pgmoe.layout import ExpertId


class ExpertStore(Protocol):
    """Reads experts into slots. `read` may be called from several threads at once."""

    tier: str
    """`disk` or `host`, for metrics and reports."""

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """Where in a slot `read` puts each tensor of this expert, in bytes; always the same answer."""
        ...

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """Fill `slot` (uint8, page-aligned host memory, slot_bytes long) and return the bytes moved.

        Blocks until done. Raises ExpertReadError; the slot's content is then undefined.
        """
        ...

    def close(self) -> None:
        """Give back files and memory. Nothing is read after it."""
        ...
