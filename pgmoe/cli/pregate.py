"""`pgmoe pregate`: rewire a model's gates, to be trained so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from pgmoe.cli.console import bytes_bar
from pgmoe.units import format_bytes


def pregate(
    model: Annotated[
        str, typer.Argument(help="Folder or hub id of a conventional Mixture-of-Experts model.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    level: Annotated[
        int, typer.Option(min=0, help="MoE blocks that a gate looks ahead; 0 copies the model.")
    ] = 1,
    scope: Annotated[
        Literal["decoder", "encoder", "both"], typer.Option(help="Whose blocks are pre-gated.")
    ] = "decoder",
    start: Annotated[
        Literal["next", "own", "fresh"],
        typer.Option(
            help="What a gate that selects for a later block starts from: that block's old router, the "
            "router of the block whose input it reads, or chance."
        ),
    ] = "next",
    seed: Annotated[int, typer.Option(help="Draws fresh gates.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Let the gate of each MoE block select the experts of a later one (Pre-gated MoE, arXiv 2308.12066).

    The result is served as it is, with exact prefetches; `pgmoe finetune` gives it back its quality.
    """
    from pgmoe.training.pregate import pregate as run

    with bytes_bar(f"Pre-gating {model}") as progress:
        done = run(
            model, out.expanduser(), level=level, scope=scope, start=start, seed=seed, progress=progress
        )
    gates = {} if done.pre_gating is None else dict(done.pre_gating.gates)
    num_early = sum(not gate.startswith(f"{reads}.") for gate, reads in gates.items())
    if as_json:
        result = {"folder": str(done.folder), "bytes": done.num_bytes, "level": level, "gates": gates}
        typer.echo(json.dumps(result))
        return
    what = f"{num_early} of {len(gates)} gates select ahead" if gates else "a copy"
    typer.echo(f"{done.folder}: {format_bytes(done.num_bytes)}, {what}")
