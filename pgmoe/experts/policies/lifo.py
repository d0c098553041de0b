"""Last in, first out."""

from __future__ import annotations

from collections.abc import Container

from pgmoe.layout import ExpertId


class LastInFirstOut:
    """Evicts the newcomer, so that most of a set larger than the cache stays; uses do not count."""

    def __init__(self) -> None:
        self._order: dict[ExpertId, None] = {}

    def insert(self, expert: ExpertId) -> None:
        """The newest."""
        self._order[expert] = None

    def touch(self, expert: ExpertId) -> None:
        """No matter."""

    def remove(self, expert: ExpertId) -> None:
        """Forgets it."""
        del self._order[expert]

    def victim(self, protected: Container[ExpertId]) -> ExpertId | None:
        """The newest that is not protected."""
        return next((e for e in reversed(self._order) if e not in protected), None)
