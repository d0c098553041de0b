"""`pgmoe bench batches`: several sequences in one pass."""

from __future__ import annotations

from typing import Annotated

import typer

from pgmoe.cli.bench_memory import EngineOption, GatingNames, Link
from pgmoe.cli.bench_models import ModelKind, checkpoint_of, result_name
from pgmoe.cli.bench_options import (
    RESULTS,
    Documents,
    Out,
    Rounds,
    Threads,
    link_options,
    make_place,
    read_documents,
)
from pgmoe.cli.console import steps_bar

Batch = Annotated[list[int], typer.Option(min=1, help="Sequences in a pass; may be repeated.")]
Share = Annotated[float, typer.Option(min=0.1, max=100, help="Per cent of the experts in memory.")]


def batches(
    model: ModelKind,
    text: Documents,
    batch: Batch = [1, 4, 16, 64],  # noqa: B006
    share: Share = 25.0,
    gating: GatingNames = ["on_demand", "auto"],  # noqa: B006
    option: EngineOption = [],  # noqa: B006
    emulate: Link = None,
    rounds: Rounds = 3,
    tokens: Annotated[int, typer.Option(min=9, help="Of each sequence's answer.")] = 16,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Speed of 1 to 64 sequences decoded together, with a share of the experts in memory."""
    from pgmoe.bench.batches import BatchPlan, batch_jobs, check_gatings, measure_batches
    from pgmoe.bench.batches_report import render_batches
    from pgmoe.bench.curves import check_options, parse_options

    options = parse_options(option) + link_options(emulate)
    check_gatings(gating)
    check_options(options, gating)
    documents, folder = read_documents(text), checkpoint_of(model)
    wanted = BatchPlan(
        name=result_name("batches", model, folder, emulate),
        batches=tuple(batch),
        share=share,
        gatings=tuple(gating),
        options=options,
        jobs=batch_jobs(str(folder), documents, batch, tokens),
    )
    with steps_bar() as progress:
        result = measure_batches(wanted, make_place(folder, "cpu", threads), rounds, progress)
    typer.echo(render_batches(result))
    typer.echo(f"written to {result.save(out)}", err=True)
