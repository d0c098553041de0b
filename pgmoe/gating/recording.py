"""Writes down what is routed, and what another gating saw of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pgmoe.routing import Gating, Prediction, Routing
from pgmoe.trace import TracedLayer, TracedStep, together

Rows = Sequence[Sequence[int]]


class RecordingGating:
    """Keeps each layer's selection and scores, and what `inner` looked ahead for it.

    Nothing is fetched on a guess meanwhile. So no guess can fail to pay, and the look-ahead never pauses.
    """

    predicts = True
    limited = False
    exact = False
    reach = 1

    def __init__(self, inner: Gating) -> None:
        self._inner = inner
        self._steps: list[tuple[str, list[tuple[Routing, Rows]]]] = []
        self._ahead: dict[int, Rows] = {}

    def begin(self, sequences: Sequence[str]) -> None:
        """A forward pass of its own, under the names of its sequences together."""
        self._steps.append((together(sequences), []))
        self._ahead.clear()
        self._inner.begin(sequences)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """`inner`'s."""
        return self._inner.look_ahead(layer, hidden)

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """Nothing; the routing is kept."""
        self._steps[-1][1].append((routing, self._ahead.pop(routing.layer, ())))
        self._ahead[routing.layer + self._inner.reach] = routing.ahead
        return ()

    def steps(self, experts_per_layer: Sequence[int]) -> tuple[TracedStep, ...]:
        """The forward passes so far, the one under way included. Waits for the device to read the scores."""
        return tuple(
            TracedStep(
                sequence,
                tuple(_traced(routing, ahead, experts_per_layer[routing.layer]) for routing, ahead in layers),
            )
            for sequence, layers in self._steps
        )


def _traced(routing: Routing, ahead: Rows, num_experts: int) -> TracedLayer:
    """Without the entries that stand for no expert."""
    chosen = [
        [(expert, score) for expert, score in zip(row, scores, strict=True) if expert < num_experts]
        for row, scores in zip(routing.ids, routing.weights.tolist(), strict=True)
    ]
    return TracedLayer(
        layer=routing.layer,
        ids=tuple(tuple(expert for expert, _ in row) for row in chosen),
        scores=tuple(tuple(score for _, score in row) for row in chosen),
        predicted=tuple(tuple(expert for expert in row if expert < num_experts) for row in ahead),
    )
