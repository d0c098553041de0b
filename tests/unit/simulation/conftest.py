from __future__ import annotations

import random
from collections.abc import Sequence

from pgmoe.trace import Trace, TracedLayer, TracedStep


def random_trace(seed: int, num_steps: int, experts_per_layer: Sequence[int] = (8, 8, 8)) -> Trace:
    """Two sequences that take turns, five tokens in the first step of each; two experts a token, unevenly."""
    draw = random.Random(seed)

    def layer(index: int, num_tokens: int) -> TracedLayer:
        weights = [1 / (1 + rank) for rank in range(experts_per_layer[index])]
        ids = tuple(
            tuple(dict.fromkeys(draw.choices(range(len(weights)), weights, k=2))) for _ in range(num_tokens)
        )
        return TracedLayer(index, ids, tuple((0.5,) * len(row) for row in ids))

    steps = tuple(
        TracedStep(f"s{n % 2}", tuple(layer(i, 5 if n < 2 else 1) for i in range(len(experts_per_layer))))
        for n in range(num_steps)
    )
    return Trace("random", tuple(experts_per_layer), 2, 1000, steps)
