"""`pgmoe selftest`: check offloading, to the bit, on a user's own model."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from pgmoe.cli.options import DeviceMemory, HostMemory, Json, Model


def selftest(
    model: Model,
    device_memory: DeviceMemory = "50%",
    host_memory: HostMemory = "auto",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate and compare.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Recompute every MoE layer of an offloaded run from plainly read weights and compare to the bit.

    Exits with status 1, naming the first layer that differs, if one does.
    """
    from pgmoe.config import EngineConfig
    from pgmoe.selftest import run_selftest

    config = EngineConfig.parse(
        {"model": model, "device_memory": device_memory, "host_memory": host_memory, "device": device}
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("Comparing tokens", total=tokens)
        report = run_selftest(
            config, tokens, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(report), "passed": report.passed}))
    elif report.passed:
        resident = {
            True: "equal to all experts resident",
            None: "all experts resident do not fit, not compared",
        }
        typer.echo(
            f"pass: {report.num_experts_checked} expert computations in {report.num_layers} MoE layers over "
            f"{report.num_tokens} tokens, equal to the bit; {resident[report.resident_equal]}"
        )
    elif report.difference is not None:
        d = report.difference
        typer.echo(f"FAIL: {d.layer} differs first, in call {d.call}, by up to {d.largest:g}")
    else:
        typer.echo("FAIL: with all experts resident the tokens or their probabilities differ")
    if not report.passed:
        raise typer.Exit(1)
