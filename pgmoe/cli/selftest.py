"""`pgmoe selftest`: check offloading, to the bit, on a user's own model."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from pgmoe.cli.options import Device, DeviceMemory, HostMemory, Json, Model

if TYPE_CHECKING:
    from pgmoe.selftest import SelfTestReport


def selftest(
    model: Model,
    device_memory: DeviceMemory = "50%",
    host_memory: HostMemory = "auto",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate and compare.")] = 16,
    device: Device = "auto",
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
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what.capitalize())
            bar.update(tasks[what], completed=done, total=total)

        report = run_selftest(config, tokens, show)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(report), "passed": report.passed}))
    else:
        typer.echo(_verdict(report))
    if not report.passed:
        raise typer.Exit(1)


def _verdict(report: SelfTestReport) -> str:
    if report.difference is not None:
        d = report.difference
        return f"FAIL: {d.layer} differs first, in call {d.call}, by up to {d.largest:g}"
    if report.resident_equal is False:
        return "FAIL: with all experts resident the tokens or their probabilities differ"
    resident = (
        "equal to all experts resident"
        if report.resident_equal
        else "all experts resident do not fit, not compared"
    )
    return (
        f"pass: {report.num_experts_checked} expert computations in {report.num_layers} MoE layers over "
        f"{report.num_tokens} tokens, equal to the bit; {resident}"
    )
