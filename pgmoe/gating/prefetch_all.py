"""Every expert of the next MoE layer: a baseline.

Source: the Pre-gated MoE paper's MoE-Prefetch, after SE-MoE (Shen et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pgmoe.routing import Prediction, Routing


class PrefetchAll:
    """Predicts all experts of whichever layer followed this one the last time."""

    predicts = True
    limited = False
    exact = False
    reach = 1

    def __init__(self, experts_per_layer: Sequence[int]) -> None:
        self._num_experts = tuple(experts_per_layer)
        self._after = {layer: layer + 1 for layer in range(len(self._num_experts) - 1)}
        self._layer: int | None = None

    def begin(self, sequences: Sequence[str]) -> None:
        """See Gating. Of no interest here: the device does one layer after the other, whoever's it is."""

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """None."""
        return None

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """One prediction; none after the last layer as long as nothing has followed it yet."""
        if self._layer is not None:
            self._after[self._layer] = routing.layer
        self._layer = routing.layer
        following = self._after.get(routing.layer)
        if following is None:
            return ()
        num_experts = self._num_experts[following]
        return [Prediction(following, tuple(range(num_experts)), (1.0,) * num_experts)]
