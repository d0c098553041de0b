"""`pgmoe info`: what a model is made of, and what a budget buys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pgmoe.cli.options import Device, Json, Model
from pgmoe.units import format_bytes

if TYPE_CHECKING:
    from pgmoe.engine.memory_plan import ExpertShape

SHARES = (100, 75, 50, 25, 10)


@dataclass(frozen=True)
class Fit:
    """What one budget holds."""

    budget: str
    device_bytes: int
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
    from pgmoe.engine.assembly import parse_device
    from pgmoe.engine.memory_plan import ExpertShape
    from pgmoe.models.loader import read_plan

    plan = read_plan(model)
    loaded_bytes = plan.loaded_bytes(parse_device(device))
    shape = ExpertShape.of(plan.layers, loaded_bytes)
    expert_bytes = max(layer.layout.weight_bytes for layer in plan.layers)
    fits = [_fit(device_memory, shape)] if device_memory else _shares(shape)
    facts: dict[str, str | int] = {
        "folder": str(plan.checkpoint.folder),
        "architecture": plan.model_class.__name__,
        "dtype": str(plan.layers[0].dtype).removeprefix("torch."),
        "experts_stored_as": ", ".join(sorted({layer.encoding for layer in plan.layers})),
        "moe_layers": len(plan.layers),
        "experts_per_layer": max(layer.num_experts for layer in plan.layers),
        "experts_per_token": shape.top_k,
        "dense_bytes": loaded_bytes,
        "embedding_left_in_file_bytes": plan.dense_bytes - loaded_bytes,
        "expert_bytes": expert_bytes,
        "total_bytes": plan.dense_bytes + sum(x.num_experts * x.layout.weight_bytes for x in plan.layers),
        "smallest_device_memory_bytes": shape.smallest_bytes,
    }
    if as_json:
        typer.echo(json.dumps({**facts, "fits": [f.__dict__ for f in fits]}))
        return
    _print(facts, fits)


def _fit(budget: str, shape: ExpertShape) -> Fit:
    from pgmoe.engine.memory_plan import plan_slots

    slots = plan_slots(budget, shape)
    used = shape.dense_bytes + slots * shape.slot_bytes
    return Fit(budget, used, slots, slots / shape.num_experts)


def _shares(shape: ExpertShape) -> list[Fit]:
    """The usual shares; those too small for one token's experts are left out."""
    enough = [p for p in SHARES if shape.num_experts * p // 100 >= shape.top_k]
    return [_fit(f"{p}%", shape) for p in enough]


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
