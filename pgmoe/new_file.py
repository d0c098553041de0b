"""Files that a command is going to write: refused before its work, not after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from pgmoe.errors import ConfigError


def check_writable_folder(folder: Path) -> None:
    """Raise ConfigError unless files can be made in `folder`, which may be missing yet. Writes nothing."""
    with _told(folder):
        nearest = folder.absolute()
        while not nearest.exists():
            nearest = nearest.parent
        if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            raise ConfigError(
                f"cannot write to {folder}: {nearest} is no folder that this user may write to; name another"
            )


def check_new_file(path: Path) -> None:
    """Raise ConfigError unless `path` can be written: its folder is there, and it is no folder itself."""
    with _told(path):
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder; name a file in it")
        if not path.absolute().parent.exists():
            raise ConfigError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    check_writable_folder(path.absolute().parent)


def write_new_file(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write a file and overwrite none: where the name is taken, -2, -3, … stands behind the stem.

    `folder` is made if need be. Returns the path. Raises ConfigError.
    """
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        path = next(path for name in names if not (path := folder / f"{name}{suffix}").exists())
        path.write_bytes(content)
        return path


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another place") from error
