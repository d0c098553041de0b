"""A limit on one process's memory, its page cache included: a control group of Linux, version 1 or 2."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgmoe.errors import ConfigError
from pgmoe.units import format_bytes

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_LIMITS = {
    # Without swap: what does not fit is page cache given up, or the process ends.
    1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    2: ("memory.max", "memory.swap.max"),
}
"""For each version: the files of the limit, and of the one on swap."""


@dataclass(frozen=True)
class ControlGroup:
    """Plain data: it travels to the process that joins."""

    folder: Path

    def join(self) -> None:
        """Put the calling process in: what it takes or reads from now on counts. Raises ConfigError."""
        try:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            raise ConfigError(f"cannot join {self.folder}: {error.strerror}") from error


@contextmanager
def memory_limit(num_bytes: int, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[ControlGroup]:
    """A group for processes that together may have this much memory; removed at the end, when they are gone.

    Raises ConfigError where there is no memory controller, or this user may not make groups.
    """
    version, parent = _parent(root, membership)
    folder = parent / f"pgmoe-bench-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    limit, swap = _LIMITS[version]
    try:
        folder.mkdir()
    except OSError as error:
        raise _refused(num_bytes, folder, error) from error
    try:
        try:
            (folder / limit).write_text(str(num_bytes))
            if (folder / swap).exists():  # kernels may be built or booted without
                (folder / swap).write_text(str(num_bytes if version == 1 else 0))
        except OSError as error:
            raise _refused(num_bytes, folder, error) from error
        yield ControlGroup(folder)
    finally:
        folder.rmdir()


def _parent(root: Path, membership: Path) -> tuple[int, Path]:
    """The version, and where to make a group: below our own in version 1, beside it in version 2.

    In version 2 a group that holds processes cannot have groups with limits below it. In a container our
    own group may not be visible under its name; `root` is then it.
    """
    lines = membership.read_text().splitlines() if membership.exists() else []
    groups = {controllers: name.strip("/") for _, controllers, name in (x.split(":", 2) for x in lines)}
    for controllers, name in groups.items():
        if "memory" in controllers.split(","):
            own = root / "memory" / name
            return 1, own if own.is_dir() else root / "memory"
    own = root / groups.get("", "")
    return 2, own.parent if own != root and own.is_dir() else root


def _refused(num_bytes: int, folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot limit memory to {format_bytes(num_bytes)}: {folder}: {error.strerror}; that needs Linux "
        "control groups with the memory controller, and the right to make one (root, or a delegated group); "
        "`--no-limits` measures without"
    )
