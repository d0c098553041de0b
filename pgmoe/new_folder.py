"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pgmoe.errors import ConfigError
from pgmoe.new_file import check_writable_folder
from pgmoe.units import format_bytes


def check_new_folder(out: Path, need_bytes: int = 0) -> None:
    """Raise ConfigError if `out` is taken, or its disk has less than `need_bytes` free. Writes nothing."""
    check_writable_folder(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name another or remove it")
    disk = out.absolute()
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if free < need_bytes:
        raise ConfigError(
            f"{out} needs {format_bytes(need_bytes)}, and its disk has {format_bytes(free)} free; "
            "free some space or name a folder on another disk"
        )


@contextmanager
def new_folder(out: Path, need_bytes: int) -> Iterator[Path]:
    """Give a temporary sibling of `out` to write to; it becomes `out` when the block ends well.

    Where the block raises, the sibling is removed and `out` is as it was. Raises ConfigError as
    `check_new_folder` does, and for a write that the file system refuses.
    """
    check_new_folder(out, need_bytes)
    partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
