"""What a pack is made of, told apart from every other model by a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pgmoe.models.checkpoint import INDEX, SMALL_FILES, Checkpoint
from pgmoe.models.pack import PackSource


def source_of(checkpoint: Checkpoint) -> PackSource:
    """Its name and a SHA-256 over the content of the small files and the weight files' names, sizes, times
    of change and headers. Weights themselves are not read.
    """
    weight_files = sorted({Path(tensor.path) for tensor in checkpoint.tensors.values()})
    digest = hashlib.sha256()
    for path in small_files(checkpoint.folder):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    for path in weight_files:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    for key, t in sorted(checkpoint.tensors.items()):
        digest.update(f"{key}\0{Path(t.path).name}\0{t.dtype}\0{t.shape}\0{t.offset}\0".encode())
    return PackSource(
        name=checkpoint.folder.resolve().name,
        digest=digest.hexdigest(),
        files={path.name: path.stat().st_size for path in weight_files},
    )


def small_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer and chat template: what goes into a pack as it is."""
    found = {path for pattern in SMALL_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != INDEX)
