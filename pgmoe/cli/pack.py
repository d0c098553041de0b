"""`pgmoe pack`: write a checkpoint anew so that an expert is one read, and check what was written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pgmoe.cli.console import bytes_bar
from pgmoe.cli.options import Json, Model
from pgmoe.units import format_bytes


def pack(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write; must not exist or be empty.", show_default=False)
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the pack MODEL whole and compare its checksums instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a pack of a checkpoint: one aligned range of a file for each expert, which is read in one go.

    Started again after it was cut short, it goes on where it stopped. With --verify, MODEL is a pack, and its
    corrupt parts are listed, with status 1 if there is one.
    """
    if verify == (out is not None):
        raise typer.BadParameter("give MODEL and OUT, or --verify and the pack", param_hint="OUT")
    if out is None:
        _verify(model, as_json)
    else:
        _pack(model, out.expanduser(), as_json)


def _pack(model: str, out: Path, as_json: bool) -> None:
    from pgmoe.packing.pack import pack as run

    with bytes_bar(f"Packing {model}") as progress:
        done = run(model, out, progress=progress)
    if as_json:
        typer.echo(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return
    typer.echo(
        f"{done.folder}: {done.num_experts} experts of {format_bytes(done.blob_bytes)} (a slot of the "
        f"checkpoint took {format_bytes(done.unpacked_slot_bytes)}), {format_bytes(done.dense_bytes)} dense "
        f"weights, {format_bytes(done.num_bytes)} in all"
    )


def _verify(folder: str, as_json: bool) -> None:
    from pgmoe.packing.verify import verify_pack

    with bytes_bar(f"Verifying {folder}") as progress:
        found = verify_pack(folder, progress)
    if as_json:
        faults = [{**asdict(c.part), "why": c.why} for c in found.corrupt]
        typer.echo(json.dumps({"folder": str(found.folder), "bytes": found.num_bytes, "corrupt": faults}))
    else:
        for corrupt in found.corrupt:
            typer.echo(str(corrupt))
        verdict = f"{len(found.corrupt)} corrupt" if found.corrupt else "all as written"
        typer.echo(f"{found.num_parts} parts, {format_bytes(found.num_bytes)}: {verdict}")
    if found.corrupt:
        raise typer.Exit(1)
