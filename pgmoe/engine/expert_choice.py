"""Whom to admit next by the experts that each would bring along.

After Read-ME's batching (Cai et al. 2024, arXiv 2410.19123, Algorithm 1), which serves together who uses the
same experts. Its router knows them beforehand for all layers; here they are estimated, layer by layer, and
what counts is what would have to be moved. Who waits is passed over only so often (`WaitingQueue`), which
Read-ME does not bound. Pure: told what is known. Shape letters: L MoE layers, E experts of the largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from pgmoe.layout import ExpertId

Floats = npt.NDArray[np.floating]
Footprint = Callable[[str, Sequence[int]], Floats]
"""Of a sequence of these tokens: (L, E), how likely its next token is to use each expert."""

MOST_CANDIDATES = 32
"""Of those who wait, the first ones."""
LEAST_SAVING = 0.02
"""Of the experts that the next steps are expected to move: for less nobody is passed over."""


class ExpertChoice:
    """Prefers the waiting sequence whose experts are in slots, on their way, or used by others anyway.

    A sequence costs the experts that are in no slot and that it alone uses, in expectation, in each step:
    sum over experts of p * product over those running of (1 - p of theirs), tokens taken as independent.
    """

    def __init__(self, footprint: Footprint, held: Callable[[], Iterable[ExpertId]]) -> None:
        """`held`: the experts that are in slots or on their way there."""
        self._footprint = footprint
        self._held = held

    def __call__(
        self, waiting: Mapping[str, Sequence[int]], running: Mapping[str, Sequence[int]]
    ) -> str | None:
        """Who is to be admitted, of those that wait, in order, with their tokens; None: the first will do."""
        candidates = list(islice(waiting, MOST_CANDIDATES))
        if len(candidates) < 2:
            return None
        use = {name: self._footprint(name, waiting[name]) for name in candidates}
        first = candidates[0]
        unused_LE = np.ones_like(use[first])
        for name, token_ids in running.items():
            unused_LE *= 1 - self._footprint(name, token_ids)
        absent_LE = np.ones_like(unused_LE)
        for layer, expert in self._held():
            absent_LE[layer, expert] = 0
        alone_LE = unused_LE * absent_LE
        costs = {name: float((use[name] * alone_LE).sum()) for name in candidates}
        best = min(candidates, key=costs.__getitem__)
        moved = float(((1 - unused_LE) * absent_LE).sum()) + costs[first]
        return best if costs[first] - costs[best] > LEAST_SAVING * moved else None
