"""Least frequently used first."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Container

from pgmoe.layout import ExpertId


class LeastFrequentlyUsed:
    """Evicts the expert with the fewest uses since it came; of equals, who has been so for longest."""

    def __init__(self) -> None:
        self._uses: dict[ExpertId, int] = {}
        self._with_uses: defaultdict[int, OrderedDict[ExpertId, None]] = defaultdict(OrderedDict)

    def insert(self, expert: ExpertId) -> None:
        """Not used yet, whatever it was used before it was evicted."""
        self._count(expert, 0)

    def touch(self, expert: ExpertId) -> None:
        """One use more."""
        self._count(expert, self._forget(expert) + 1)

    def remove(self, expert: ExpertId) -> None:
        """Forgets it and its uses."""
        self._forget(expert)

    def victim(self, protected: Container[ExpertId]) -> ExpertId | None:
        """The least used that is not protected."""
        for uses in sorted(self._with_uses):
            for expert in self._with_uses[uses]:
                if expert not in protected:
                    return expert
        return None

    def _count(self, expert: ExpertId, uses: int) -> None:
        self._uses[expert] = uses
        self._with_uses[uses][expert] = None

    def _forget(self, expert: ExpertId) -> int:
        uses = self._uses.pop(expert)
        equals = self._with_uses[uses]
        del equals[expert]
        if not equals:
            del self._with_uses[uses]
        return uses
