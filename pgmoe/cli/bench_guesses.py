"""`pgmoe bench guesses`: how often a later layer's experts are known early."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgmoe.cli.bench_models import ModelKind, checkpoint_of
from pgmoe.cli.bench_options import RESULTS, Documents, Out, Threads, make_place, read_documents
from pgmoe.cli.console import steps_bar


def guesses(
    model: ModelKind,
    text: Documents,
    distance: Annotated[
        list[int], typer.Option(min=1, help="Layers ahead that a router is asked; may be repeated.")
    ] = [1, 2, 3],  # noqa: B006
    pre_gated: Annotated[
        Path | None, typer.Option(help="A pre-gated twin, whose choices are compared with the model's.")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Of the text's, the first so many.")] = 50,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """How often routers guess right what a later layer chooses, and how near a pre-gated twin stays."""
    from pgmoe.bench.guesses import measure_guesses
    from pgmoe.bench.guesses_report import render_guesses

    lines = read_documents(text)
    place = make_place(checkpoint_of(model), "cpu", threads)
    twin = None if pre_gated is None else str(checkpoint_of(str(pre_gated)))
    with steps_bar() as progress:
        result = measure_guesses(place, lines[:documents], distance, twin, progress)
    typer.echo(render_guesses(result))
    typer.echo(f"written to {result.save(out)}", err=True)
