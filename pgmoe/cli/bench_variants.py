"""`pgmoe bench variants`: the same requests with different options of our engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.bench_memory import EngineOption, Link
from pgmoe.cli.bench_models import ModelKind, checkpoint_of, describe_model, result_name
from pgmoe.cli.bench_options import RESULTS, Out, Rounds, Threads, link_options, make_place, read_documents
from pgmoe.cli.bench_throughput import (
    AnswerTokens,
    PromptTokens,
    Requests,
    Vary,
    describe_answers,
    describe_requests,
)
from pgmoe.cli.console import steps_bar

if TYPE_CHECKING:
    from pgmoe.bench.streams import StreamsJob

Variants = Annotated[
    list[str],
    typer.Option("--variant", help="NAME=VALUE[,NAME=VALUE ...]: options of one engine; to be repeated."),
]
Name = Annotated[str, typer.Argument(help="What is compared, for the result file's name.")]
Topics = Annotated[
    list[str],
    typer.Option(
        "--text",
        help="FILE or FILE:SOURCE, a topic: prompts are beginnings of its documents (a line each, or a "
        "Parquet column `text`, all rows or those of a `source`). Streams take turns at the topics. None: "
        "uniformly drawn tokens.",
    ),
]


def variants(
    model: ModelKind,
    name: Name,
    variant: Variants,
    share: Annotated[float, typer.Option(min=0.1, max=100, help="Per cent of the experts in memory.")] = 25.0,
    option: EngineOption = [],  # noqa: B006
    emulate: Link = None,
    streams: Annotated[int, typer.Option(min=1, help="Requests at once, running or waiting.")] = 16,
    requests: Requests = 2,
    prompt: PromptTokens = 64,
    shared: Annotated[int, typer.Option(min=0, help="First tokens that a stream's prompts share.")] = 0,
    tokens: AnswerTokens = 32,
    vary: Vary = 25.0,
    text: Topics = [],  # noqa: B006
    rounds: Rounds = 3,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Throughput, latencies and experts used with different options of our engine, on the same requests."""
    from pgmoe.bench.compare import check_distinct
    from pgmoe.bench.curves import check_options, parse_options
    from pgmoe.bench.variants import VariantsPlan, measure_variants
    from pgmoe.bench.variants_report import render_variants

    common = parse_options(option) + link_options(emulate)
    check_distinct("variant", variant)
    named = {each: parse_options(each.split(",")) for each in variant}
    for own in named.values():
        check_options(common + own, [])
    folder = checkpoint_of(model)
    wanted = VariantsPlan(
        name=f"{result_name('variants', model, folder, emulate)}-{name}",
        device_memory=f"{share:g}%",
        variants=named,
        options=common,
        job=_job(folder, text, streams, requests, prompt, shared, tokens, vary),
        workload=(
            f"{describe_model(model, folder)}; {streams} streams: "
            f"{describe_requests(requests, prompt, _drawn(text, shared))}; {describe_answers(tokens, vary)}; "
            "greedy, end tokens ignored"
        ),
    )
    with steps_bar() as progress:
        result = measure_variants(wanted, make_place(folder, "cpu", threads), rounds, progress)
    typer.echo(render_variants(result))
    typer.echo(f"written to {result.save(out)}", err=True)


def _job(
    folder: Path,
    topics: list[str],
    num_streams: int,
    num_requests: int,
    length: int,
    num_shared: int,
    num_tokens: int,
    vary: float,
) -> StreamsJob:
    from pgmoe.bench.throughput import streams_jobs
    from pgmoe.bench.variants import shared_prompts, topic_prompts

    if topics and num_shared:
        raise typer.BadParameter("documents begin as they do: give --shared without --text")
    if topics:
        documents = [read_documents(*_topic(topic)) for topic in topics]
        prompts = topic_prompts(str(folder), documents, num_streams, num_requests, length)
    else:
        prompts = shared_prompts(str(folder), num_streams, num_requests, length, num_shared)
    (job,) = streams_jobs(prompts, [num_streams], num_requests, num_tokens, vary)
    return job


def _topic(text: str) -> tuple[Path, str | None]:
    """File and source."""
    name, colon, source = text.rpartition(":")
    return (Path(name), source) if colon else (Path(text), None)


def _drawn(topics: list[str], num_shared: int) -> str:
    if topics:
        names = ", ".join(source or file.stem for file, source in map(_topic, topics))
        return f"beginnings of documents, streams taking turns at {len(topics)} topics ({names})"
    shared = f"; those of a stream share their first {num_shared}" if num_shared else ""
    return f"uniformly drawn tokens{shared}"
