"""`pgmoe plan`: which budget buys what speed, predicted before anything is loaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.options import Device, Json, Model
from pgmoe.errors import ConfigError
from pgmoe.picture import check_picture
from pgmoe.units import parse_rate

if TYPE_CHECKING:
    import torch

    from pgmoe.cli.plan_report import Row
    from pgmoe.engine.memory_plan import MemoryPlan
    from pgmoe.engine.roofline import Prediction, TokenCost
    from pgmoe.models.loader import ModelPlan
    from pgmoe.simulation.hit_rates import HitRates

SHARES = (100, 75, 50, 25, 10)
POINTS, REPLAYS = 200, 25
"""Of a drawn line; a replay takes longer than a formula."""


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
    trace: Annotated[
        Path | None, typer.Option(help="Hit rates by replaying this `pgmoe trace`, not uniform routing.")
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

    One sequence at a time, fetching and computing overlapped without loss, routing as recorded or uniform.
    """
    from pgmoe.cli.plan_offline import offline_text
    from pgmoe.cli.plan_report import render_json, show
    from pgmoe.engine.assembly import resolve_device
    from pgmoe.models.loader import read_plan

    if plot is not None:
        check_picture(plot)
    found, on = read_plan(model), resolve_device(device)
    hits = _hit_rates(found, trace)
    memories = _memories(found, on, device_memory)
    cost = _cost(found, on, bandwidth, compute_tokens_per_s)
    rows = [_row(budget, memory, cost, hits) for budget, memory in memories.items()]
    routing = "uniform routing" if trace is None else f"routing of {trace.name}"
    if plot is not None:
        from pgmoe.cli.plan_plot import draw

        title = f"{Path(model).name}: predicted by the roofline, {routing}"
        draw(title, rows, _line(cost, hits), cost, plot)
    text = None if offline is None else offline_text(found, offline)
    if as_json:
        typer.echo(render_json(rows, cost, routing, found.layers[0], text))
    else:
        show(rows, cost, routing, found.layers[0], text)


def _hit_rates(found: ModelPlan, trace: Path | None) -> HitRates | None:
    """With the policy that engines have by default."""
    if trace is None:
        return None
    from pgmoe.config import EngineConfig
    from pgmoe.simulation.hit_rates import HitRates
    from pgmoe.trace import Trace

    policy = EngineConfig(model=str(found.checkpoint.folder)).policy
    return HitRates(Trace.load(trace), policy, tuple(layer.num_experts for layer in found.layers))


def _memories(found: ModelPlan, device: torch.device, own_budget: str | None) -> dict[str, MemoryPlan]:
    """What each budget is divided into. Raises BudgetTooSmall."""
    from pgmoe.config import EngineConfig
    from pgmoe.engine.device_plan import plan_device
    from pgmoe.engine.measured_needs import measuring
    from pgmoe.engine.memory_plan import ExpertShape

    shape = ExpertShape.of(found.layers, found.loaded_bytes(device))
    config = EngineConfig(model=str(found.checkpoint.folder), device=str(device))
    measure = cache(measuring(found, config, device))
    shares = [f"{p}%" for p in SHARES if shape.num_experts * p // 100 >= shape.top_k]
    budgets = [*shares, *([own_budget] if own_budget else [])]
    return {budget: plan_device(budget, "auto", "auto", shape, measure) for budget in budgets}


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
    import torch

    from pgmoe.config import EngineConfig
    from pgmoe.experts.links.bandwidth import measure_reads, targets_needed
    from pgmoe.experts.slots import SlotArena
    from pgmoe.experts.stores.opening import open_disk_store
    from pgmoe.layout import ExpertId

    experts = [ExpertId(i, e) for i, layer in enumerate(found.layers) for e in range(layer.num_experts)]
    slot_bytes = max(layer.layout.slot_bytes for layer in found.layers)
    config = EngineConfig(model=str(found.checkpoint.folder))
    store = open_disk_store(found.layers, direct_io=config.direct_io, check_pack=False)
    num_targets = targets_needed(slot_bytes, config.num_readers)
    arena = SlotArena(num_targets, slot_bytes, torch.device("cpu"))
    try:
        targets = [arena.slot(index) for index in range(num_targets)]
        speed = measure_reads(store, experts, targets, config.num_readers)
    finally:
        store.close()
    if not speed:
        raise ConfigError(f"{found.checkpoint.folder}: its experts could not be read; give --bandwidth")
    return speed


def _predict(cost: TokenCost, num_slots: int, hits: HitRates | None) -> Prediction:
    from pgmoe.engine.roofline import predict

    return predict(cost, num_slots, None if hits is None else hits.at(num_slots))


def _line(cost: TokenCost, hits: HitRates | None) -> list[Prediction]:
    """From few slots to as many as experts."""
    number = POINTS if hits is None else REPLAYS
    slots = sorted({max(1, cost.num_experts * i // number) for i in range(1, number + 1)})
    return [_predict(cost, num_slots, hits) for num_slots in slots]


def _row(budget: str, memory: MemoryPlan, cost: TokenCost, hits: HitRates | None) -> Row:
    from pgmoe.cli.plan_report import Row

    p = _predict(cost, memory.num_slots, hits)
    return Row(
        budget=budget,
        device_bytes=memory.total_bytes,
        slots=memory.num_slots,
        hit_rate=p.hit_rate,
        miss_bytes_per_token=p.miss_bytes,
        tokens_per_s=p.tokens_per_s,
        limit=p.limit,
    )
