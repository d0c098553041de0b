"""Whom a guess may not push out: experts in use, and those that a coming layer is expected to use."""

from __future__ import annotations

from collections.abc import Iterable

from pgmoe.layout import ExpertId


class Warmth:
    """Counts layers' turns. An expert is cold once the turn in which it was last used is over.

    The policy chooses among the cold ones. Sparing those of earlier turns as well would leave few: a policy
    that looks forward gives up first what was just used, whose layer's next turn is the furthest away.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._last_use: dict[ExpertId, int] = {}
        self._expected: dict[int, frozenset[ExpertId]] = {}
        self.expected = _Expected(self._expected)
        """The experts that coming layers are expected to use."""

    def next_turn(self, layer: int) -> None:
        """It is this layer's turn; what was expected of it is over."""
        self._turn += 1
        self._expected.pop(layer, None)

    def used(self, expert: ExpertId) -> None:
        """It is used in this turn."""
        self._last_use[expert] = self._turn

    def expect(self, layer: int, experts: Iterable[ExpertId]) -> None:
        """This layer's next turn is expected to use these; in place of what was expected before."""
        self._expected[layer] = frozenset(experts)

    def is_cold(self, expert: ExpertId) -> bool:
        """Not used in this turn."""
        return self._last_use.get(expert) != self._turn


class _Expected:
    """The container of all layers' sets."""

    def __init__(self, by_layer: dict[int, frozenset[ExpertId]]) -> None:
        self._by_layer = by_layer

    def __contains__(self, expert: object) -> bool:
        assert isinstance(expert, ExpertId)
        return expert in self._by_layer.get(expert.layer, ())
