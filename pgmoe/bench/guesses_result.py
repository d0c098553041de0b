"""How often a later layer's experts are known early, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pgmoe.bench.result import Record


@dataclass(frozen=True)
class Recall:
    """Of one way of knowing early."""

    name: str
    by_layer: tuple[float | None, ...]
    """For each MoE layer the mean share of a token's experts that were known; None where nothing is asked."""

    @property
    def mean(self) -> float:
        """Over the layers where something is."""
        return fmean(share for share in self.by_layer if share is not None)


@dataclass(frozen=True)
class GuessesResult(Record):
    """Guesses of a model's routers, and how a pre-gated model's choices compare, on the same tokens."""

    num_tokens: int
    chance: float
    """The share that a blind guess of as many experts would have."""
    recalls: tuple[Recall, ...]
    pre_gated: Recall | None
    """Share of a token's experts that the pre-gated model chooses too, committed to before the layer."""

    @property
    def lines(self) -> Sequence[Recall]:
        """All of them."""
        return (*self.recalls, *((self.pre_gated,) if self.pre_gated else ()))
