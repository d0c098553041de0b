"""Taking files out of the operating system's page cache: or a disk would be measured as RAM."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pgmoe.errors import ConfigError


def drop_from_page_cache(paths: Iterable[str | Path]) -> None:
    """Write back and drop these files' cached pages; pages that a process has mapped stay."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)  # pages not yet written back could not be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises ConfigError if there are none."""
    found = sorted(Path(folder).glob("*.safetensors"))
    if not found:
        raise ConfigError(f"{folder} has no safetensors files; name a folder with a checkpoint or a pack")
    return found


def largest(files: Iterable[Path]) -> Path:
    """The one with the most bytes, to measure a disk with."""
    return max(files, key=lambda path: path.stat().st_size)
