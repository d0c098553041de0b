"""What was routed and what will be: plain data between MoE layers, gatings and the experts' pool.

Shape letters: N tokens of one forward pass, K experts that a token uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """The selection of one MoE layer in one forward pass."""

    layer: int
    ids: Sequence[Sequence[int]]
    """(N, K): each token's experts; entries at or above the number of experts stand for none."""
    weights: Tensor
    """(N, K), on the device: reading it waits for the device."""
    ahead: Sequence[Sequence[int]] = ()
    """(N, K): what `Gating.look_ahead` gave for this pass, if anything."""


@dataclass(frozen=True)
class Prediction:
    """Experts of a coming layer, the likeliest first."""

    layer: int
    experts: tuple[int, ...]
    scores: tuple[float, ...]
    """Of each; the larger the likelier, comparable within one prediction only."""
    exact: bool = False
    """Whether this is the layer's selection itself and no guess: all of them will be used."""


class Gating(Protocol):
    """Knows, exactly or by a guess, which experts come next. It never changes what is computed."""

    predicts: bool
    """Whether it ever predicts anything; one that does not is asked nothing."""
    limited: bool
    """Whether guesses obey the limiter; the paper's baseline `prefetch_all` and the oracle do not."""
    exact: bool
    """Whether it knows selections, so that it has to be asked even where guesses rest. What a layer chooses
    before its attention is then ordered at once, and the gating need not name it."""
    reach: int
    """Layers from the one whose input `look_ahead` is given to the one that it looks at."""

    def begin(self, sequences: Sequence[str]) -> None:
        """A forward pass of these sequences' tokens begins; its layers follow in execution order.

        Rows of a selection are in the order of the sequences: one each, or more where prompts are read.
        """
        ...

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Experts that a later layer may choose, from this layer's expert input (N, D): int64 (N, K) or None.

        Only enqueues work on the device. What it returns comes back to the host together with the layer's
        own selection, so that the host waits once a layer.
        """
        ...

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """What is known of coming layers now that this layer's selection is known; the nearest first."""
        ...
