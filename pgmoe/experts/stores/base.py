"""What a store is: the owner of every expert's bytes on disk."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pgmoe.layout import ExpertId


class ExpertStore(Protocol):
    """Reads experts into memory. `read` may be called from several threads at once."""

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """Where in a slot `read` puts each tensor of this expert, in bytes; always the same answer."""
        ...

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """Fill `slot` (host memory: uint8, page-aligned, slot_bytes long) and return the bytes moved.

        Blocks until done. Raises ExpertReadError; the slot's content is then undefined.
        """
        ...

    def verify(self, expert: ExpertId, slot: Tensor) -> None:
        """Raise ExpertReadError if `read` has put something else into `slot` than was once stored.

        For who reads an expert once and keeps it. Files without checksums pass.
        """
        ...

    def is_corrupt(self, expert: ExpertId) -> bool:
        """Whether what is stored is known to be wrong: then copies of it are, too, and `read` raises."""
        ...

    def close(self) -> None:
        """Give back files and memory. Nothing is read after it."""
        ...
