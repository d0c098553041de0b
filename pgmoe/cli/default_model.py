"""`pgmoe default-model`: build the model that the default configuration serves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from pgmoe.cli.console import bytes_bar

FOLDER_NAME = "smollm2-8x135m"


def default_model(
    out: Annotated[
        Path | None,
        typer.Argument(help=f"Folder to write; {FOLDER_NAME} in pgmoe's cache folder if not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build the default model (SmolLM2-135M-Instruct as 8 equal experts) if need be; print its folder."""
    folder = out.expanduser() if out is not None else cache_folder() / FOLDER_NAME
    built = build_if_missing(folder)
    typer.echo(json.dumps({"folder": str(folder), "built": built}) if as_json else folder)


def build_if_missing(folder: Path) -> bool:
    """Build the model unless `folder` has one; whether it was built."""
    if (folder / "config.json").is_file():
        return False
    from pgmoe.training.default_model import build_default_model

    with bytes_bar("Building the default model") as progress:
        build_default_model(folder, progress)
    return True


def cache_folder() -> Path:
    """`~/.cache/pgmoe`, or where the XDG base directories put it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pgmoe"
