"""Eviction policies: who loses its slot. Pure decisions, no clock, no tensor, no I/O."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from pgmoe.layout import ExpertId


class EvictionPolicy(Protocol):
    """Knows the experts that hold a slot and picks victims among them."""

    def insert(self, expert: ExpertId) -> None:
        """`expert`, unknown so far, now holds a slot. Not yet a use: it may have come on a guess."""
        ...

    def touch(self, expert: ExpertId) -> None:
        """`expert`, known, is used now."""
        ...

    def remove(self, expert: ExpertId) -> None:
        """`expert`, known, has lost its slot."""
        ...

    def victim(self, protected: Container[ExpertId]) -> ExpertId | None:
        """The known expert outside `protected` to evict next, or None; changes nothing."""
        ...
