"""Which experts a tier holds before anything is known of the traffic."""

from __future__ import annotations

from collections.abc import Sequence

from pgmoe.layout import ExpertId, ExpertLayer


def every_expert(layers: Sequence[ExpertLayer]) -> list[ExpertId]:
    """All experts of all layers, in order."""
    return [ExpertId(i, e) for i, layer in enumerate(layers) for e in range(layer.num_experts)]


def spread_evenly(layers: Sequence[ExpertLayer], count: int) -> list[ExpertId]:
    """`count` of all experts, the same share of every layer as nearly as whole experts allow."""
    experts = every_expert(layers)
    assert count <= len(experts), count
    by_share = sorted(experts, key=lambda x: (x.expert + 1) / layers[x.layer].num_experts)
    return sorted(by_share[:count])
