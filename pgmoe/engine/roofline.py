"""How fast a budget will decode, predicted by a roofline: compute and the link, whichever is slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TokenCost:
    """What one token takes of a model and a machine."""

    experts_used: int
    """Of all MoE layers together."""
    expert_bytes: int
    """Of one expert's weights: what a miss moves."""
    num_experts: int
    """Of all MoE layers together."""
    compute_s: float
    """With all experts on the device."""
    bandwidth: float
    """Of the link that brings missing experts, in bytes/s."""


@dataclass(frozen=True)
class Prediction:
    """Of one number of slots. No measurement."""

    num_slots: int
    hit_rate: float
    miss_bytes: float
    """For each token."""
    link_s: float
    """For each token."""
    tokens_per_s: float
    limit: Literal["compute", "link"]


def predict(cost: TokenCost, num_slots: int, hit_rate: float | None = None) -> Prediction:
    """Tokens per second of one sequence, where fetching and computing overlap without loss.

    Without a known `hit_rate`, routing is taken as uniform and independent: an expert is on the device as
    often as its share of slots says. Real routing has locality, so a cache does better than that.
    """
    hits = min(1.0, num_slots / cost.num_experts) if hit_rate is None else hit_rate
    miss_bytes = cost.experts_used * (1 - hits) * cost.expert_bytes
    link_s = miss_bytes / cost.bandwidth
    return Prediction(
        num_slots=num_slots,
        hit_rate=hits,
        miss_bytes=miss_bytes,
        link_s=link_s,
        tokens_per_s=1 / max(cost.compute_s, link_s),
        limit="compute" if cost.compute_s >= link_s else "link",
    )
