"""A recorded routing: which experts every token of every forward pass used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TracedLayer:
    """One MoE layer in one forward pass of N tokens, K experts each."""

    layer: int
    ids: tuple[tuple[int, ...], ...]
    """(N, K): each token's experts, tokens without any have an empty row."""
    scores: tuple[tuple[float, ...], ...]
    """(N, K): their routing weights."""
    predicted: tuple[tuple[int, ...], ...] = ()
    """(N, K): what this layer's own gate chose from the previous MoE layer's input; empty where unknown."""


@dataclass(frozen=True)
class TracedStep:
    """One forward pass, its MoE layers in execution order."""

    sequence: str
    layers: tuple[TracedLayer, ...]


@dataclass(frozen=True)
class Trace:
    """Forward passes in the order in which they ran, and the model's shape."""

    model: str
    experts_per_layer: tuple[int, ...]
    top_k: int
    expert_bytes: int
    """Of one expert's weights."""
    steps: tuple[TracedStep, ...]
