"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Checkpoint or pack folder, or hub id (safetensors).")]
DeviceMemory = Annotated[
    str,
    typer.Option(help="Budget on the device: 600MiB for weights, KV cache and all, or 50% of the experts."),
]
HostMemory = Annotated[
    str,
    typer.Option(help="RAM for copies of experts: auto, 0 (all from disk), 600MiB, or 50% of the experts."),
]
Gating = Annotated[
    str,
    typer.Option(
        help="How coming experts are known: auto, pregated, speculative, statistical, on_demand, "
        "prefetch_all."
    ),
]
Policy = Annotated[str, typer.Option(help="Who loses its slot: prospect, lru, lfu, lifo.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Most tokens to generate; 256, or what fits, if not given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
