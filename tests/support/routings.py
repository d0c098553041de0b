"""Routings by hand, and random streams of them as an engine would report them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from pgmoe.routing import Gating, Prediction, Routing
from pgmoe.trace import Trace, TracedLayer, TracedStep


def routing(layer: int, *ids: Sequence[int], ahead: Sequence[Sequence[int]] = ()) -> Routing:
    """One layer's selection; `ids` has a row for each token."""
    return Routing(layer, ids, torch.ones(len(ids), len(ids[0])), ahead)


def random_step(draw: random.Random, layers: Sequence[int], num_experts: int, top_k: int) -> list[Routing]:
    """One pass of 1 to 4 tokens, now and then with entries that stand for no expert."""
    num_tokens = draw.randint(1, 4)
    found = []
    for layer in layers:
        rows = [draw.sample(range(num_experts + 1), top_k) for _ in range(num_tokens)]
        found.append(routing(layer, *rows))
    return found


def play(gating: Gating, sequence: str, step: Sequence[Routing]) -> list[list[Prediction]]:
    """Report one pass; what was predicted after each of its layers."""
    gating.begin([sequence])
    return [list(gating.predict(one)) for one in step]


def trace_of(steps: Sequence[tuple[str, Sequence[Routing]]], num_layers: int, num_experts: int) -> Trace:
    """The recording of these passes."""
    traced = [
        TracedStep(
            sequence,
            tuple(
                TracedLayer(
                    layer=one.layer,
                    ids=tuple(tuple(e for e in row if e < num_experts) for row in one.ids),
                    scores=tuple(tuple(1.0 for e in row if e < num_experts) for row in one.ids),
                )
                for one in step
            ),
        )
        for sequence, step in steps
    ]
    top_k = len(steps[0][1][0].ids[0])
    return Trace("tiny", (num_experts,) * num_layers, top_k, 1000, tuple(traced))
