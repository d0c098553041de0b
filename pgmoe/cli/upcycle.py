"""`pgmoe upcycle`: make a Mixture of Experts of a dense model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from pgmoe.cli.console import bytes_bar
from pgmoe.units import format_bytes


def upcycle(
    dense_model: Annotated[str, typer.Argument(help="Folder, hub id or .gguf file of a Llama-type model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    experts: Annotated[int, typer.Option(min=1, help="Experts in each layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts that a token uses.")] = 2,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; auto keeps the stored one (bfloat16 for GGUF)."),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Decides the new routers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn a dense Llama-type model into a Mixtral-type MoE that computes the same function.

    Each expert starts as a copy of the dense feed-forward network (sparse upcycling, arXiv 2212.05055).
    """
    import torch

    from pgmoe.training.upcycle import upcycle as run

    with bytes_bar(f"Upcycling {dense_model}") as progress:
        done = run(
            dense_model,
            out.expanduser(),
            num_experts=experts,
            top_k=top_k,
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            seed=seed,
            progress=progress,
        )
    name = str(done.dtype).removeprefix("torch.")
    if as_json:
        result = {"folder": str(done.folder), "bytes": done.num_bytes, "parameters": done.num_parameters}
        typer.echo(json.dumps({**result, "dtype": name, "experts": experts, "top_k": top_k}))
        return
    millions = done.num_parameters / 1e6
    typer.echo(f"{done.folder}: {millions:,.0f} M parameters, {format_bytes(done.num_bytes)}, {name}")
