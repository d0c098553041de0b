"""`pgmoe simulate`: what cache policies would have done on a recorded trace."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pgmoe.cli.options import Json
from pgmoe.picture import check_picture
from pgmoe.units import format_bytes, parse_rate

if TYPE_CHECKING:
    from pgmoe.simulation.report import Simulation


class PoolKind(StrEnum):
    """One pool of slots for all layers, or one for each."""

    GLOBAL = "global"
    PER_LAYER = "per-layer"


def simulate(
    trace: Annotated[Path, typer.Argument(help="A trace that `pgmoe trace` wrote.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="prospect, lru, lfu or lifo; may be repeated. All if not given.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="25% of the experts, or a number of slots; may be repeated. 10, 25, 50, 75 % if not given."
        ),
    ] = None,
    bandwidth: Annotated[str, typer.Option(help="Of the link that experts come over.")] = "2GB/s",
    pools: Annotated[
        list[PoolKind] | None,
        typer.Option(help="One for all layers (global, if not given), or per-layer; may be repeated."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw misses by budget to this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Count the misses of cache policies, and of the offline optimum, on a recorded routing."""
    from pgmoe.experts.policies import POLICIES
    from pgmoe.simulation.plot import plot as draw
    from pgmoe.simulation.report import simulate as run
    from pgmoe.trace import Trace

    if plot is not None:
        check_picture(plot)
    result = run(
        Trace.load(trace),
        policy or sorted(POLICIES),
        budget or ["10%", "25%", "50%", "75%"],
        parse_rate(bandwidth),
        [kind.value for kind in pools or [PoolKind.GLOBAL]],
    )
    if plot is not None:
        draw(result, plot)
    if as_json:
        typer.echo(result.json())
    else:
        Console().print(_table(result))


def _table(result: Simulation) -> Table:
    passes = f"{result.num_steps} forward passes of {result.num_sequences} sequences"
    title = f"{result.model}: {passes}, {result.uses} expert uses"
    table = Table(title=title, box=box.SIMPLE, padding=0)
    for column in ("slots", "pools", "policy"):
        table.add_column(column, no_wrap=True)
    for column in ("misses", "hits", "/ Belady", "read", f"at {result.bandwidth / 1e9:g} GB/s"):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for o in result.outcomes:
        if before is not None and before != (o.num_slots, o.pools):
            table.add_section()
        before = (o.num_slots, o.pools)
        table.add_row(
            f"{o.num_slots} ({o.share:.0%})",
            o.pools,
            o.policy,
            str(o.misses),
            f"{o.hit_rate:.1%}",
            f"{o.over_belady:.3f}",
            format_bytes(o.num_bytes),
            f"{o.least_s:.2f} s",
        )
    return table
