"""Knows nothing: every expert is fetched when it is needed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pgmoe.routing import Prediction, Routing


class OnDemand:
    """Predicts nothing."""

    predicts = False
    limited = True
    exact = False
    reach = 1

    def begin(self, sequences: Sequence[str]) -> None:
        """See Gating."""

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """None."""
        return None

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """Nothing."""
        return ()
