"""What a trace asks of a cache: one MoE layer's experts at a time."""

from __future__ import annotations

from collections.abc import Sequence

from pgmoe.layout import ExpertId
from pgmoe.trace import Trace

Demand = tuple[ExpertId, ...]
"""The distinct experts that one layer of one forward pass uses, all of the same layer, in ascending order."""


def demands(trace: Trace) -> tuple[Demand, ...]:
    """All of a trace, in the order in which they came; layers that use no expert are left out."""
    found = []
    for step in trace.steps:
        for traced in step.layers:
            if experts := sorted({expert for row in traced.ids for expert in row}):
                found.append(tuple(ExpertId(traced.layer, expert) for expert in experts))
    return tuple(found)


def of_layer(layer: int, wanted: Sequence[Demand]) -> tuple[Demand, ...]:
    """Those of one layer."""
    return tuple(demand for demand in wanted if demand[0].layer == layer)
