"""Writes down what is routed while another gating does the guessing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pgmoe.routing import Gating, Prediction, Routing
from pgmoe.trace import TracedLayer, TracedStep


class RecordingGating:
    """Passes everything on to `inner` and keeps each layer's selection, scores and the look-ahead for it."""

    def __init__(self, inner: Gating, experts_per_layer: Sequence[int]) -> None:
        self._inner = inner
        self._experts_per_layer = experts_per_layer
        self._steps: list[tuple[str, list[TracedLayer]]] = []
        self._ahead: Sequence[Sequence[int]] = ()
        self.limited = inner.limited

    @property
    def steps(self) -> tuple[TracedStep, ...]:
        """The forward passes so far, the one under way included."""
        return tuple(TracedStep(sequence, tuple(layers)) for sequence, layers in self._steps)

    def begin(self, sequence: str) -> None:
        """A forward pass of its own."""
        self._steps.append((sequence, []))
        self._ahead = ()
        self._inner.begin(sequence)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """`inner`'s."""
        return self._inner.look_ahead(layer, hidden)

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """`inner`'s; the routing is kept. Waits for the device to read the scores."""
        self._steps[-1][1].append(self._traced(routing))
        self._ahead = routing.ahead
        return self._inner.predict(routing)

    def _traced(self, routing: Routing) -> TracedLayer:
        num_experts = self._experts_per_layer[routing.layer]
        chosen = [
            [(expert, score) for expert, score in zip(row, scores, strict=True) if expert < num_experts]
            for row, scores in zip(routing.ids, routing.weights.tolist(), strict=True)
        ]
        return TracedLayer(
            layer=routing.layer,
            ids=tuple(tuple(expert for expert, _ in row) for row in chosen),
            scores=tuple(tuple(score for _, score in row) for row in chosen),
            predicted=tuple(tuple(expert for expert in row if expert < num_experts) for row in self._ahead),
        )
