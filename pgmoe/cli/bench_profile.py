"""`pgmoe bench profile`: where a token's time goes."""

from __future__ import annotations

from typing import Annotated

import typer

from pgmoe.cli.bench_memory import EngineOption, OurTokens, Pack, Share
from pgmoe.cli.bench_models import ModelKind, checkpoint_of, result_name, workload_of
from pgmoe.cli.bench_options import RESULTS, Out, Rounds, Threads, make_place
from pgmoe.cli.console import steps_bar


def profile(
    model: ModelKind,
    share: Share = [100.0, 25.0, 10.0],  # noqa: B006
    gating: Annotated[
        list[str], typer.Option(help="Measured at every share below 100 %; may be repeated.")
    ] = ["on_demand", "auto"],  # noqa: B006
    option: EngineOption = [],  # noqa: B006
    pack: Pack = None,
    rounds: Rounds = 3,
    tokens: OurTokens = 32,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Where a decoded token's time goes: dense layers, experts, waiting for them, bookkeeping."""
    from pgmoe.bench.curves import check_options, pack_options, parse_options
    from pgmoe.bench.profile import ProfilePlan, measure_profile
    from pgmoe.bench.profile_report import render_profile

    options = parse_options(option) + pack_options(pack)
    check_options(options, gating)
    folder = checkpoint_of(model)
    job, workload = workload_of(model, folder, tokens)
    wanted = ProfilePlan(
        name=result_name("profile", model, folder) + ("-pack" if pack is not None else ""),
        shares=tuple(share),
        gatings=tuple(gating),
        options=options,
        job=job,
        workload=workload,
    )
    with steps_bar() as progress:
        result = measure_profile(wanted, make_place(folder, "cpu", threads), rounds, progress)
    typer.echo(render_profile(result))
    typer.echo(f"written to {result.save(out)}", err=True)
