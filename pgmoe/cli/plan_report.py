"""A plan as a table, as JSON and in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pgmoe.engine.roofline import TokenCost
from pgmoe.experts.whole_layers import WholeLayers, expected_distinct
from pgmoe.units import format_bytes

if TYPE_CHECKING:
    from pgmoe.layout import ExpertLayer

BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True)
class Row:
    """One budget and what it is predicted to buy."""

    budget: str
    device_bytes: int
    slots: int
    hit_rate: float
    miss_bytes_per_token: float
    tokens_per_s: float
    limit: str


@dataclass(frozen=True)
class Batch:
    """So many tokens computed together, and how many experts of a layer they use."""

    tokens: int
    distinct_experts: float
    mode: str
    """`stream all` of a layer's experts, or `fetch the chosen`."""


def batches(layer: ExpertLayer, cost: TokenCost) -> list[Batch]:
    """What uniform routing makes of batches of several sizes, and what the rule of `whole_layers` says if no
    expert of the layer is there, and if a batch takes as long as one token."""
    whole = WholeLayers([layer.num_experts], [layer.top_k], cost.expert_bytes)
    layer_s = cost.compute_s * layer.num_experts / cost.num_experts
    found = []
    for size in BATCHES:
        distinct = expected_distinct(layer.num_experts, layer.top_k, size)
        streams = whole.pays(0, size, layer.num_experts, layer_s * cost.bandwidth)
        found.append(Batch(size, distinct, "stream all" if streams else "fetch the chosen"))
    return found


def render_json(
    rows: Sequence[Row], cost: TokenCost, routing: str, layer: ExpertLayer, offline: str | None
) -> str:
    """Everything, as one object."""
    document = {
        "kind": "prediction",
        "routing": routing,
        **asdict(cost),
        "budgets": [asdict(row) for row in rows],
        "batches_of_uniform_routing": [asdict(batch) for batch in batches(layer, cost)],
        **({"offline": offline} if offline is not None else {}),
    }
    return json.dumps(document)


def show(rows: Sequence[Row], cost: TokenCost, routing: str, layer: ExpertLayer, offline: str | None) -> None:
    """Print the table and what stands beside it."""
    console = Console()
    console.print(
        f"Predicted, not measured: one sequence, {routing}; compute {1 / cost.compute_s:.1f} tokens/s "
        f"with all experts resident, link {format_bytes(int(cost.bandwidth))}/s."
    )
    table = Table("budget", "on the device", "slots", "hit rate", "missed a token", "tokens/s", "limit")
    for row in rows:
        table.add_row(
            row.budget,
            format_bytes(row.device_bytes),
            str(row.slots),
            f"{row.hit_rate:.0%}",
            format_bytes(int(row.miss_bytes_per_token)),
            f"{row.tokens_per_s:.1f}",
            row.limit,
        )
    console.print(table)
    parts = (
        f"{b.tokens} tokens use {b.distinct_experts:.1f} of {layer.num_experts} experts ({b.mode})"
        for b in batches(layer, cost)
    )
    console.print("Batched offline, uniform routing, a layer of " + ", ".join(parts) + ".")
    if offline is not None:
        console.print(offline)
