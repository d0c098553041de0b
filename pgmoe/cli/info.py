"""`pgmoe info`: what a model is made of, and what a budget buys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pgmoe.cli.options import Device, Json, Model
from pgmoe.units import format_bytes

if TYPE_CHECKING:
    from pgmoe.engine.memory_plan import ExpertShape
    from pgmoe.models.loader import ModelPlan

SHARES = (100, 75, 50, 25, 10)


@dataclass(frozen=True)
class Fit:
    """What one budget holds."""

    budget: str
    device_bytes: int
    """Of everything, KV cache and workspace included."""
    slots: int
    share: float
    """Of all experts."""


def info(
    model: Model,
    device_memory: Annotated[
        str | None, typer.Option(help="A budget to try, e.g. 600MiB; a table of shares if none is given.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show layers, experts and bytes of a checkpoint, read from its headers alone."""
    from pgmoe.config import EngineConfig
    from pgmoe.engine.assembly import parse_device
    from pgmoe.engine.device_plan import LEAST_CHUNK, plan_device
    from pgmoe.engine.measured_needs import measuring
    from pgmoe.engine.memory_plan import ExpertShape, smallest_budget
    from pgmoe.models.loader import read_plan

    plan, on = read_plan(model), parse_device(device)
    loaded_bytes = plan.loaded_bytes(on)
    shape = ExpertShape.of(plan.layers, loaded_bytes)
    config = EngineConfig(model=model, device=device)
    measure = cache(measuring(plan, config, on))
    needs = measure(LEAST_CHUNK)
    expert_bytes = max(layer.layout.weight_bytes for layer in plan.layers)
    budgets = [device_memory] if device_memory else _shares(shape)
    memories = [plan_device(budget, "auto", "auto", shape, measure) for budget in budgets]
    fits = [
        Fit(budget, memory.total_bytes, memory.num_slots, memory.num_slots / shape.num_experts)
        for budget, memory in zip(budgets, memories, strict=True)
    ]
    facts: dict[str, str | int] = {
        "folder": str(plan.checkpoint.folder),
        "architecture": plan.model_class.__name__,
        "dtype": str(plan.layers[0].dtype).removeprefix("torch."),
        "experts_stored_as": ", ".join(sorted({layer.encoding for layer in plan.layers})),
        "moe_layers": len(plan.layers),
        "experts_per_layer": max(layer.num_experts for layer in plan.layers),
        "experts_per_token": shape.top_k,
        "experts_known": _known(plan),
        "dense_bytes": loaded_bytes,
        "embedding_left_in_file_bytes": plan.dense_bytes - loaded_bytes,
        "expert_bytes": expert_bytes,
        "total_bytes": plan.dense_bytes + sum(x.num_experts * x.layout.weight_bytes for x in plan.layers),
        "kv_token_bytes": needs.kv.token_bytes,
        "smallest_device_memory_bytes": smallest_budget(shape, needs),
    }
    if as_json:
        typer.echo(json.dumps({**facts, "fits": [f.__dict__ for f in fits]}))
        return
    _print(facts, fits)
    if device_memory:
        typer.echo(memories[0].text())


def _known(plan: ModelPlan) -> str:
    """How early the model itself knows a layer's experts."""
    from pgmoe.models.early import early_blocks
    from pgmoe.models.families import find_sockets
    from pgmoe.pre_gating import PreGating

    pre_gating = PreGating.of(plan.config.to_dict())
    if pre_gating is not None:
        blocks = "block" if pre_gating.level == 1 else "blocks"
        return f"{pre_gating.level} MoE {blocks} ahead (pre-gated {pre_gating.scope})"
    early = early_blocks(plan.skeleton, find_sockets(plan.skeleton))
    return "before the layer's attention" if early else "when the layer is reached"


def _shares(shape: ExpertShape) -> list[str]:
    """The usual shares; those too small for one token's experts are left out."""
    return [f"{p}%" for p in SHARES if shape.num_experts * p // 100 >= shape.top_k]


def _print(facts: dict[str, str | int], fits: list[Fit]) -> None:
    console = Console()
    about = Table(show_header=False, box=None)
    for name, value in facts.items():
        shown = format_bytes(value) if name.endswith("_bytes") and isinstance(value, int) else str(value)
        about.add_row(name.removesuffix("_bytes").replace("_", " "), shown)
    console.print(about)
    table = Table("budget", "on the device", "expert slots", "of all experts")
    for fit in fits:
        table.add_row(fit.budget, format_bytes(fit.device_bytes), str(fit.slots), f"{fit.share:.0%}")
    console.print(table)
