"""Knows a later layer's experts before their turn: the model itself has selected them already.

Source: Hwang et al., "Pre-gated MoE" (arXiv 2308.12066).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor

from pgmoe.gating.statistical import Statistical
from pgmoe.routing import Prediction, Routing


class Pregated:
    """Exact selections `level` layers ahead; statistics for layers that choose at their own turn."""

    predicts = True
    limited = True
    exact = True

    def __init__(
        self,
        selections: Sequence[Callable[[Tensor], Tensor] | None],
        level: int,
        experts_per_layer: Sequence[int],
        early: Collection[int] = (),
    ) -> None:
        """`selections[i]`: from layer i's input (N, D) to layer i + level's ids (N, K) int64, or None.

        `early`: layers that choose before their attention and say so themselves; nothing is said of them.
        """
        self._selections = tuple(selections) or (None,) * len(experts_per_layer)
        self.reach = self._level = level
        self._num_experts = tuple(experts_per_layer)
        known = {layer + level for layer, select in enumerate(selections) if select is not None}
        others = set(range(len(self._num_experts))) - known - set(early)
        self._statistical = Statistical(experts_per_layer, others)

    def begin(self, sequences: Sequence[str]) -> None:
        """See Gating."""
        self._statistical.begin(sequences)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """See Gating."""
        select = self._selections[layer]
        return None if select is None else select(hidden)

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """The selection, exact, and what statistics say of a layer that selects for itself."""
        guessed = self._statistical.predict(routing)
        return [*self._selected(routing.layer + self._level, routing.ahead), *guessed]

    def _selected(self, layer: int, ahead: Sequence[Sequence[int]]) -> Iterator[Prediction]:
        """Experts of most tokens first; nothing if none is used."""
        used = Counter(e for row in ahead for e in row if e < self._num_experts[layer]).most_common()
        if used:
            yield Prediction(layer, tuple(e for e, _ in used), tuple(float(n) for _, n in used), exact=True)
