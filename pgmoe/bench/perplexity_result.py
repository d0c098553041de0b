"""Perplexity of models on text that none of them has seen."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.bench.result import Record

TOTAL = "all"
"""Of all sources together."""


@dataclass(frozen=True)
class PerplexityResult(Record):
    """By source, and of all text."""

    num_tokens: dict[str, int]
    models: dict[str, dict[str, float]]
    """By a model's name, by source: exp of the mean negative log-likelihood of a token."""

    @property
    def sources(self) -> list[str]:
        """All of them last."""
        return sorted(self.num_tokens, key=lambda name: (name == TOTAL, name))
