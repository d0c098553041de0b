"""Least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from pgmoe.layout import ExpertId


class LeastRecentlyUsed:
    """Evicts the expert whose last use lies furthest back."""

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertId, None] = OrderedDict()

    def insert(self, expert: ExpertId) -> None:
        """Newcomers are as recent as what was used last."""
        self._order[expert] = None

    def touch(self, expert: ExpertId) -> None:
        """Moves it to the recent end."""
        self._order.move_to_end(expert)

    def remove(self, expert: ExpertId) -> None:
        """Forgets it."""
        del self._order[expert]

    def victim(self, protected: Container[ExpertId]) -> ExpertId | None:
        """The oldest that is not protected."""
        return next((e for e in self._order if e not in protected), None)
