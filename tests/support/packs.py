"""Packs of test checkpoints, and what is in them."""

from __future__ import annotations

from pathlib import Path

from pgmoe.packing.pack import pack


def packed(model: Path, out: Path) -> Path:
    """Pack `model` into `out` and return it."""
    return pack(str(model), out).folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
