"""The models that benchmarks run by name, and the tokens that they are fed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.bench_options import make_random, scratch_folder
from pgmoe.cli.default_model import Kind, build_if_missing, default_folder

if TYPE_CHECKING:
    from pgmoe.bench.job import Job

LOCAL_SPREAD = 0.5
"""Of the embeddings: LRU then hits about as often as with trained models."""
LOCALITY = (
    "of which follows, over 160 tokens of this stream: an LRU cache of a quarter of the experts has 51 % "
    "hits, of half 85 %, of three quarters 99 %; 36 % of a token's experts in a layer are the last token's; "
    "the next layer's gate on this layer's input finds 79 % of the next layer's experts"
)
"""Of the checkpoint with LOCAL_SPREAD, measured apart from any engine."""

DEFAULTS: dict[str, Kind] = {
    "default": "pre-gated",
    "default-conventional": "conventional",
    "default-equal": "equal",
}
ModelKind = Annotated[
    str,
    typer.Argument(
        help="default (pre-gated), default-conventional (its twin), default-equal (before training), "
        "olmoe-like (3.5 GB of random weights, planted locality), small-moe (of `pgmoe bench small-moe`), a "
        "folder, or a hub id."
    ),
]


def checkpoint_of(model: str) -> Path:
    """The checkpoint of this kind, made if it is missing and takes no training. Raises CheckpointError."""
    from pgmoe.bench.random_model import OLMOE_HALF
    from pgmoe.models.checkpoint import resolve_folder

    if model in DEFAULTS:
        build_if_missing(folder := default_folder(DEFAULTS[model]), DEFAULTS[model])
        return folder
    if model == "small-moe":
        return scratch_folder() / model
    if model == "olmoe-like":
        folder = scratch_folder() / f"olmoe-half-{LOCAL_SPREAD:g}"
        make_random(folder, replace(OLMOE_HALF, embedding_spread=LOCAL_SPREAD), "cpu")
        return folder
    return resolve_folder(model)


def result_name(what: str, model: str, folder: Path, emulate: str | None = None) -> str:
    """Of a benchmark's result: what was measured, of which model, over which emulated link if any."""
    link = "" if emulate is None else f"-{emulate.replace('/', '')}"
    return f"{what}-{folder.name if '/' in model else model}{link}"


def workload_of(model: str, folder: Path, num_tokens: int) -> tuple[Job, str]:
    """The tokens for a model of this kind, and both in words."""
    from pgmoe.bench import benchmarks

    if model in DEFAULTS:
        return benchmarks.chat_job(str(folder), num_tokens), benchmarks.CHAT
    if model == "small-moe":
        job = benchmarks.text_job(str(folder), num_tokens)
        return job, f"a small OLMoE trained from scratch (experts of 0.2 MB); {benchmarks.TEXT}"
    text = describe_model(model, folder) + (f"; {LOCALITY}" if model == "olmoe-like" else "")
    return benchmarks.random_job(str(folder), num_tokens), f"{text}; {benchmarks.RANDOM_STREAM}"


def describe_model(model: str, folder: Path) -> str:
    """A model of this kind in words."""
    from pgmoe.bench.random_model import OLMOE_HALF

    if model != "olmoe-like":
        return folder.name
    return replace(OLMOE_HALF, embedding_spread=LOCAL_SPREAD).text()


def gguf_of(folder: Path) -> Path:
    """The same weights for llama.cpp, written if they are missing. Raises UnsupportedModel or ConfigError."""
    import torch

    from pgmoe.bench.gguf_model import write_gguf
    from pgmoe.models.checkpoint import Checkpoint
    from pgmoe.packing.source import source_of

    digest = source_of(Checkpoint.open(str(folder))).digest[:8]
    path = scratch_folder() / f"{folder.name}-{digest}-f16.gguf"
    if not path.is_file():
        typer.echo(f"Writing {path.name} ...", err=True)
        write_gguf(str(folder), path, torch.float16)
    return path
