"""A token that was chosen, with what was asked for about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledToken:
    """A chosen token. Log-probabilities (natural) are the model's own: no bias, penalty or filter."""

    token_id: int
    logprob: float | None = None
    """None unless asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the likeliest tokens, best first; none of probability 0."""
