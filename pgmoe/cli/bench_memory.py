"""`pgmoe bench curve`, `prefetch` and `reads`: the experts' memory system, measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.bench_models import ModelKind, checkpoint_of, gguf_of, result_name, workload_of
from pgmoe.cli.bench_options import RESULTS, Out, Threads, link_options, make_place, scratch_folder
from pgmoe.cli.console import steps_bar
from pgmoe.errors import ConfigError

if TYPE_CHECKING:
    from pgmoe.bench.curve import Curve

PEER_TOKENS = 9
SHARES = [100.0, 75.0, 50.0, 25.0, 10.0]

Share = Annotated[
    list[float], typer.Option(min=0.1, max=100, help="Per cent of the experts in memory; may be repeated.")
]
GatingNames = Annotated[list[str], typer.Option(help="A line of ours for each; may be repeated.")]
EngineOption = Annotated[
    list[str],
    typer.Option("--option", help="NAME=VALUE: an engine option of all our lines; may be repeated."),
]
Pack = Annotated[Path | None, typer.Option(help="Our lines read this pack of the same weights.")]
Link = Annotated[
    str | None, typer.Option(help="Emulate a link of this bandwidth, such as 25GB/s, in place of the disk.")
]
Twin = Annotated[
    str | None,
    typer.Option(
        help="A model (as MODEL) with as many experts of the same size; it is fed the same tokens, in a "
        "line of its own."
    ),
]
TwinGating = Annotated[str | None, typer.Option(help="Of the twin's line; speculative, if not said.")]
Lines = Annotated[int, typer.Option("--rounds", min=1, help="Times that every line is measured at a share.")]
OurTokens = Annotated[int, typer.Option("--tokens", min=9, help="Tokens of each of our answers.")]


def curve(
    model: ModelKind,
    share: Share = SHARES,
    limit: Annotated[
        list[float],
        typer.Option(
            min=1,
            max=100,
            help="In place of shares: per cent of the weights' bytes that every process may take in all, "
            "libraries included; may be repeated.",
        ),
    ] = [],  # noqa: B006
    gating: GatingNames = [],  # noqa: B006
    option: EngineOption = [],  # noqa: B006
    pack: Pack = None,
    emulate: Link = None,
    twin: Twin = None,
    twin_gating: TwinGating = None,
    peers: Annotated[bool, typer.Option(help="Measure llama.cpp and accelerate, too.")] = True,
    accelerate: Annotated[bool, typer.Option(help="Without it, llama.cpp is the only peer.")] = True,
    limits: Annotated[bool, typer.Option(help="Give every process a memory limit (needs root).")] = True,
    peer_tokens: Annotated[
        int, typer.Option(min=9, help="Of llama.cpp, where not all is resident.")
    ] = PEER_TOKENS,
    peer_threads: Annotated[int | None, typer.Option(min=1, help="Of llama.cpp there.")] = None,
    rounds: Lines = 3,
    tokens: OurTokens = 48,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Speed with 100 to 10 % of the experts in memory, beside llama.cpp and accelerate in as much memory."""
    from pgmoe.bench.curves import peer_lines

    folder = checkpoint_of(model)
    made = _curve("curve", model, folder, share, gating, option, pack, emulate, tokens)
    made = _beside_twin(made, folder, option, pack, emulate, twin, twin_gating)
    if limit:
        if emulate is not None or not limits:
            raise ConfigError("--limit sets memory limits; give it without --emulate and --no-limits")
        made = _by_limit(made, folder, limit)
    if peers and emulate is None:
        made = replace(
            made,
            name=made.name + _peers_suffix(peer_tokens, peer_threads),
            lines=(
                *made.lines,
                *peer_lines(gguf_of(folder), peer_tokens, peer_threads, accelerate=accelerate),
            ),
            resident=(*made.resident, "llama.cpp"),
        )
    _measure(replace(made, limited=limits and emulate is None), folder, threads, rounds, out)


def prefetch(
    model: ModelKind,
    share: Share = [50.0, 25.0],  # noqa: B006
    gating: GatingNames = ["on_demand", "statistical", "auto", "oracle"],  # noqa: B006
    option: EngineOption = [],  # noqa: B006
    pack: Pack = None,
    emulate: Link = None,
    twin: Twin = None,
    twin_gating: TwinGating = None,
    rounds: Lines = 5,
    tokens: OurTokens = 48,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Guessing which experts come next, in several ways, against waiting for them."""
    folder = checkpoint_of(model)
    made = _curve("prefetch", model, folder, share, gating, option, pack, emulate, tokens)
    made = _beside_twin(made, folder, option, pack, emulate, twin, twin_gating)
    _measure(replace(made, limited=False), folder, threads, rounds, out)


def reads(
    model: ModelKind,
    reader: Annotated[list[int], typer.Option(min=1, help="Readers; may be repeated.")] = [1, 2, 4],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of each measurement.")] = 1.5,
    out: Out = RESULTS,
) -> None:
    """Experts read while one core computes: of the disk's own rate how much, and at what cost to compute."""
    from pgmoe.bench.reads import measure_reads
    from pgmoe.bench.reads_report import render_reads

    with steps_bar() as progress:
        result = measure_reads(str(checkpoint_of(model)), reader, rounds, seconds, progress)
    typer.echo(render_reads(result))
    typer.echo(f"written to {result.save(out)}", err=True)


def _curve(
    what: str,
    model: str,
    folder: Path,
    shares: list[float],
    gatings: list[str],
    options: list[str],
    pack: Path | None,
    emulate: str | None,
    num_tokens: int,
) -> Curve:
    from pgmoe.bench.curve import Curve
    from pgmoe.bench.curves import ORACLE, check_options, our_lines, pack_options, parse_options
    from pgmoe.units import parse_rate

    own = parse_options(options) + pack_options(pack) + link_options(emulate)
    check_options(own, gatings)
    trace = scratch_folder() / "curve-trace.parquet"
    job, workload = workload_of(model, folder, num_tokens)
    return Curve(
        name=result_name(what, model, folder, emulate) + ("-pack" if pack is not None else ""),
        lines=our_lines(gatings, own, trace),
        resident=("pgmoe",),
        shares=tuple(shares),
        job=job,
        workload=workload,
        link_bytes_per_s=None if emulate is None else parse_rate(emulate),
        trace=trace if ORACLE in gatings else None,
    )


def _beside_twin(
    made: Curve,
    folder: Path,
    options: list[str],
    pack: Path | None,
    emulate: str | None,
    twin: str | None,
    gating: str | None,
) -> Curve:
    """With a twin's line, if there is one."""
    from pgmoe.bench.curves import check_options, parse_options, twin_line

    if twin is None:
        if gating is not None:
            raise ConfigError("--twin-gating says how a twin is served; name one with --twin")
        return made
    if pack is not None:
        raise ConfigError("--pack is of one model alone; give it without --twin")
    gating, other = gating or "speculative", checkpoint_of(twin)
    own = parse_options(options) + link_options(emulate)
    line = twin_line(other, folder, gating, own)
    check_options(own, [gating])
    told = (
        f"{made.workload}; the twin, {other.name}, is fed the same: its share of the resident speed and of "
        "the roofline, and the tokens that are the same, are taken over the other model's"
    )
    return replace(made, name=f"{made.name}-twin", lines=(*made.lines, line), workload=told)


def _peers_suffix(num_tokens: int, num_threads: int | None) -> str:
    """For the result's name: what is not as usual with llama.cpp."""
    tokens = "" if num_tokens == PEER_TOKENS else f"-{num_tokens}-peer-tokens"
    return tokens if num_threads is None else f"{tokens}-{num_threads}-peer-threads"


def _by_limit(made: Curve, folder: Path, limits: list[float]) -> Curve:
    from pgmoe.bench.share import share_within
    from pgmoe.models.loader import read_plan

    plan = read_plan(str(folder))
    shares = tuple(share_within(plan, limit) for limit in limits)
    return replace(made, name=f"{made.name}-by-limit", shares=shares, by_limit=True)


def _measure(made: Curve, folder: Path, threads: int | None, rounds: int, out: Path) -> None:
    from pgmoe.bench.curve import measure_curve
    from pgmoe.bench.curve_report import render_curve

    with steps_bar() as progress:
        result = measure_curve(made, make_place(folder, "cpu", threads), rounds, progress)
    typer.echo(render_curve(result))
    typer.echo(f"written to {result.save(out)}", err=True)
