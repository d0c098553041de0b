"""`pgmoe default-model`: build the model that the default configuration serves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pgmoe.cli.console import bytes_bar
from pgmoe.errors import ConfigError

Kind = Literal["pre-gated", "conventional", "equal"]
ENTRY = "pgmoe_default_model"
"""In config.json: the kind."""
FOLDER_NAMES: dict[Kind, str] = {
    "pre-gated": "smollm2-8x135m-pregated",
    "conventional": "smollm2-8x135m-conventional",
    "equal": "smollm2-8x135m",
}


def default_model(
    out: Annotated[
        Path | None,
        typer.Argument(
            help="Folder to write; one in pgmoe's cache folder, named for the kind, if not given."
        ),
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            help="pre-gated: gates select for the next block; conventional: the twin with the same experts "
            "whose gates select for their own; equal: eight copies of the dense network."
        ),
    ] = "pre-gated",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build the default model (SmolLM2-135M-Instruct as 8 experts) if need be; print its folder."""
    folder = out.expanduser() if out is not None else default_folder(kind)
    built = build_if_missing(folder, kind)
    typer.echo(json.dumps({"folder": str(folder), "built": built}) if as_json else folder)


def default_folder(kind: Kind = "pre-gated") -> Path:
    """Where the default model of this kind lies."""
    return cache_folder() / FOLDER_NAMES[kind]


def build_if_missing(folder: Path, kind: Kind = "pre-gated") -> bool:
    """Build the model unless `folder` has it; whether it was built. ConfigError where another kind is."""
    config = folder / "config.json"
    if config.is_file():
        found = json.loads(config.read_text(encoding="utf-8")).get(ENTRY, kind)
        if found != kind:
            raise ConfigError(f"{folder} holds the {found} model, not the {kind} one; name another folder")
        return False
    from pgmoe.training.default_model import build_default_model

    with bytes_bar("Building the default model") as progress:
        build_default_model(folder, progress, kind)
    return True


def cache_folder() -> Path:
    """`~/.cache/pgmoe`, or where the XDG base directories put it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pgmoe"
