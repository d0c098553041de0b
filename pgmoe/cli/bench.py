"""`pgmoe bench`: measure engines beside each other, and show what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pgmoe.cli.bench_batches import batches
from pgmoe.cli.bench_guesses import guesses
from pgmoe.cli.bench_memory import curve, prefetch, reads
from pgmoe.cli.bench_options import RESULTS, Folder, Out, Rounds, Threads, Tokens, make_random, measure
from pgmoe.cli.bench_profile import profile
from pgmoe.cli.bench_throughput import throughput
from pgmoe.cli.bench_variants import variants
from pgmoe.cli.console import steps_bar
from pgmoe.cli.default_model import build_if_missing, cache_folder, default_folder

app = typer.Typer(help="Measure engines beside each other on one checkpoint.", no_args_is_help=True)
app.command()(batches)
app.command()(curve)
app.command()(guesses)
app.command()(prefetch)
app.command()(profile)
app.command()(reads)
app.command()(throughput)
app.command()(variants)

ResultFile = Annotated[Path, typer.Argument(help="A result file of this command.")]


@app.command()
def default_model(
    folder: Folder = None,
    rounds: Rounds = 5,
    tokens: Tokens = 64,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """The default model: all experts resident, 25 %, transformers, accelerate's disk offload."""
    from pgmoe.bench import benchmarks

    model = folder or default_folder("conventional")  # other engines compute no pre-gated model
    build_if_missing(model, "conventional")
    measure(benchmarks.default_model(str(model), tokens), model, "cpu", threads, rounds, out)


@app.command()
def olmoe_like(
    folder: Folder = None,
    rounds: Rounds = 5,
    tokens: Tokens = 32,
    loads: Annotated[int, typer.Option(min=1, help="Cold starts measured.")] = 5,
    spread: Annotated[
        float, typer.Option(help="Of the embeddings: 1 has no locality; 0.02, as initialised, has much.")
    ] = 1.0,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """A random OLMoE of 3.5 GB: resident, 25 % from disk, no cache, transformers; and cold starts."""
    from pgmoe.bench import benchmarks
    from pgmoe.bench.random_model import OLMOE_HALF

    shape, suffix = replace(OLMOE_HALF, embedding_spread=spread), "" if spread == 1 else f"-{spread:g}"
    model = folder or cache_folder() / "bench" / f"olmoe-half{suffix}"
    make_random(model, shape, "cpu")
    benchmark = benchmarks.olmoe_like(str(model), shape.text(), tokens, loads)
    benchmark = replace(benchmark, name=benchmark.name + suffix)
    measure(benchmark, model, "cpu", threads, rounds, out)


@app.command()
def small_moe(
    text: Annotated[Path, typer.Argument(help="What to train on: UTF-8, a document a line, some megabytes.")],
    folder: Folder = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Of training; the default takes ten minutes of CPU.")
    ] = 600,
    threads: Threads = None,
) -> None:
    """Train a small OLMoE from scratch, for traces of routing that was learnt."""
    import torch

    from pgmoe.bench.small_model import Schedule, train_small_moe

    if threads is not None:
        torch.set_num_threads(threads)
    out = folder or cache_folder() / "bench" / "small-moe"
    with steps_bar() as progress:
        trained = train_small_moe(text, out, schedule=Schedule(num_steps=steps), progress=progress)
    typer.echo(
        f"{out}: trained on {trained.num_tokens} tokens; perplexity of unseen text "
        f"{trained.perplexity_before:.0f} before, {trained.perplexity_after:.1f} after"
    )


@app.command()
def gpu(
    folder: Folder = None,
    rounds: Rounds = 5,
    tokens: Tokens = 64,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """A random OLMoE of 13.8 GB on an accelerator: shares of the experts, the rest in pinned memory."""
    from pgmoe.bench import benchmarks
    from pgmoe.bench.random_model import OLMOE_FULL
    from pgmoe.engine.assembly import resolve_device
    from pgmoe.errors import ConfigError

    device = str(resolve_device("auto"))
    if device == "cpu":
        raise ConfigError(
            "this benchmark needs an accelerator, and there is none; try `pgmoe bench olmoe-like`"
        )
    model = folder or cache_folder() / "bench" / "olmoe-full"
    make_random(model, OLMOE_FULL, device)
    benchmark = benchmarks.offload_curve(str(model), OLMOE_FULL.text(), tokens)
    measure(benchmark, model, device, threads, rounds, out)


@app.command()
def policies(
    trace: Annotated[list[Path], typer.Argument(help="Traces that `pgmoe trace` wrote.")],
    about: Annotated[str, typer.Option(help="What the traces are of; goes into the result.")] = "",
    out: Out = RESULTS / "policies",
) -> None:
    """Cache policies' misses over the offline optimum's, on half of the prompts of each trace."""
    from pgmoe.bench.policies import compare_policies, render

    result = compare_policies(trace, about)
    typer.echo(render(result))
    typer.echo(f"written to {result.save(out)}", err=True)


@app.command()
def compare(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a decoder's checkpoint.")],
    arm: Annotated[
        list[str],
        typer.Option(
            help="May be repeated: resident, 25% (or any budget), no-cache, eager, grouped_mm, accelerate."
        ),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    rounds: Rounds = 5,
    tokens: Tokens = 32,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Arms of your choice on a model of your own, fed with random tokens."""
    from pgmoe.bench import benchmarks
    from pgmoe.engine.assembly import resolve_device
    from pgmoe.models.checkpoint import resolve_folder

    arms, folder = [benchmarks.parse_arm(text) for text in arm], resolve_folder(model)
    benchmark = benchmarks.custom(str(folder), arms, tokens)
    measure(benchmark, folder, str(resolve_device(device)), threads, rounds, out)


@app.command()
def show(file: ResultFile) -> None:
    """Print a result as Markdown."""
    from pgmoe.bench.result_file import load_result, render_result

    typer.echo(render_result(load_result(file)))


@app.command()
def plot(
    file: ResultFile,
    stalls: Annotated[bool, typer.Option(help="Of a curve: where in the model compute waits.")] = False,
) -> None:
    """Draw a result as a PNG beside its file."""
    from pgmoe.bench.result_file import draw_result, draw_stalls, load_result

    picture = file.with_suffix(".stalls.png" if stalls else ".png")
    (draw_stalls if stalls else draw_result)(load_result(file), picture)
    typer.echo(picture)
