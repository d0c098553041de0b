"""`pgmoe plan`: which budget buys what speed, predicted before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pgmoe.cli.options import Device, Json, Model
from pgmoe.errors import ConfigError
from pgmoe.units import format_bytes, parse_rate

if TYPE_CHECKING:
    import torch

    from pgmoe.engine.memory_plan import MemoryPlan
    from pgmoe.engine.roofline import Prediction, TokenCost
    from pgmoe.models.loader import ModelPlan

SHARES = (100, 75, 50, 25, 10)
BATCHES = (1, 4, 16, 64)
STREAM_ALL = 0.9
"""From this share of a layer's experts on, bringing all of them in order costs no more than choosing."""


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


def plan(
    model: Model,
    device_memory: Annotated[
        str | None, typer.Option(help="One more budget for the table, e.g. 600MiB.")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="Of the link that brings experts, e.g. 2GB/s; measured if not given.")
    ] = None,
    compute_tokens_per_s: Annotated[
        float | None, typer.Option(min=0.001, help="Speed with all experts resident; measured if not given.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the prediction to this PNG file.")] = None,
    offline: Annotated[
        Path | None,
        typer.Option(help="JSON of a GPU machine's figures: add MoE-Lightning's policy for offline batches."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict tokens per second for shares of the experts and a budget. Nothing is loaded or answered.

    One sequence at a time; routing is taken as uniform, fetching and computing as overlapping without loss.
    """
    from pgmoe.config import EngineConfig
    from pgmoe.engine.assembly import resolve_device
    from pgmoe.engine.measured_needs import measure_needs
    from pgmoe.engine.memory_plan import ExpertShape, plan_memory
    from pgmoe.models.loader import read_plan

    found, on = read_plan(model), resolve_device(device)
    shape = ExpertShape.of(found.layers, found.loaded_bytes(on))
    needs = measure_needs(found, EngineConfig(model=model, device=device), on)
    shares = [f"{p}%" for p in SHARES if shape.num_experts * p // 100 >= shape.top_k]
    budgets = [*shares, *([device_memory] if device_memory else [])]
    memories = {budget: plan_memory(budget, "auto", shape, needs) for budget in budgets}
    cost = _cost(found, on, bandwidth, compute_tokens_per_s)
    rows = [_row(budget, memory, cost) for budget, memory in memories.items()]
    if plot is not None:
        from pgmoe.cli.plan_plot import draw

        draw(Path(model).name, rows, cost, plot)
    if as_json:
        document = {"kind": "prediction", **asdict(cost), "budgets": [asdict(row) for row in rows]}
        typer.echo(json.dumps(document))
        return
    _print(rows, cost, found)
    if offline is not None:
        from pgmoe.cli.plan_offline import offline_text

        typer.echo(offline_text(found, offline))


def _cost(
    found: ModelPlan, device: torch.device, bandwidth: str | None, tokens_per_s: float | None
) -> TokenCost:
    """Of a token; what is not given is measured on this machine."""
    from pgmoe.engine.roofline import TokenCost
    from pgmoe.engine.weight_speed import measure_weight_reads

    expert_bytes = max(layer.layout.weight_bytes for layer in found.layers)
    used = sum(layer.top_k for layer in found.layers)
    if tokens_per_s is None:
        read = found.loaded_bytes(device) + used * expert_bytes
        tokens_per_s = measure_weight_reads(found.layers[0].dtype, device) / read
    return TokenCost(
        experts_used=used,
        expert_bytes=expert_bytes,
        num_experts=sum(layer.num_experts for layer in found.layers),
        compute_s=1 / tokens_per_s,
        bandwidth=parse_rate(bandwidth) if bandwidth else _disk_speed(found),
    )


def _disk_speed(found: ModelPlan) -> float:
    from pgmoe.config import EngineConfig
    from pgmoe.experts.links.bandwidth import measure_reads
    from pgmoe.experts.stores.opening import open_disk_store
    from pgmoe.layout import ExpertId

    experts = [ExpertId(i, e) for i, layer in enumerate(found.layers) for e in range(layer.num_experts)]
    slot_bytes = max(layer.layout.slot_bytes for layer in found.layers)
    config = EngineConfig(model=str(found.checkpoint.folder))
    store = open_disk_store(found.layers, direct_io=config.direct_io, check_pack=False)
    try:
        speed = measure_reads(store, experts, slot_bytes, config.num_readers)
    finally:
        store.close()
    if not speed:
        raise ConfigError(f"{found.checkpoint.folder}: its experts could not be read; give --bandwidth")
    return speed


def _row(budget: str, memory: MemoryPlan, cost: TokenCost) -> Row:
    from pgmoe.engine.roofline import predict

    p: Prediction = predict(cost, memory.num_slots)
    return Row(
        budget=budget,
        device_bytes=memory.total_bytes,
        slots=memory.num_slots,
        hit_rate=p.hit_rate,
        miss_bytes_per_token=p.miss_bytes,
        tokens_per_s=p.tokens_per_s,
        limit=p.limit,
    )


def _print(rows: list[Row], cost: TokenCost, found: ModelPlan) -> None:
    console = Console()
    console.print(
        f"Predicted, not measured: one sequence, uniform routing; compute {1 / cost.compute_s:.1f} tokens/s "
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
    console.print(_batches(found))


def _batches(found: ModelPlan) -> str:
    """How many experts of a layer a batch needs, and what that says of fetching."""
    from pgmoe.engine.roofline import expected_distinct

    layer = found.layers[0]
    parts = []
    for size in BATCHES:
        distinct = expected_distinct(layer.num_experts, layer.top_k, size)
        mode = "stream all" if distinct >= STREAM_ALL * layer.num_experts else "fetch the chosen"
        parts.append(f"{size} tokens use {distinct:.1f} of {layer.num_experts} experts ({mode})")
    return "Batched offline, a layer of " + ", ".join(parts) + "."
