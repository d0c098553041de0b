"""Where a large folder is written, by one process at a time and, if need be, in several tries."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pgmoe.errors import ConfigError

_LOCK = "lock"


@contextmanager
def work_folder(out: Path, *, wait: bool) -> Iterator[Path]:
    """Give a hidden sibling of `out`, ours alone among all processes and threads while the block runs.

    What an earlier block left is still in it, also one whose process was killed. It is removed when the block
    ends well, or with nothing in it. Where another process has it, the call waits for that one to end, or
    without `wait` raises ConfigError. So does an OSError in the block, with what to do.
    """
    work = out.parent / f".{out.name}.partial"
    try:
        descriptor = _lock(work, wait)
        try:
            yield work
            shutil.rmtree(work, ignore_errors=True)  # what is left over does no harm to the next
        finally:
            if work.exists() and [path.name for path in work.iterdir()] == [_LOCK]:
                shutil.rmtree(work)
            os.close(descriptor)  # and with it the lock
    except BlockingIOError:
        raise ConfigError(f"{out}: another process is writing it; wait for it to end") from None
    except OSError as error:
        raise ConfigError(
            f"cannot write {out}: {error.strerror}; once that is mended, the next try goes on from what is "
            f"in {work}; or remove that and name a folder elsewhere"
        ) from error


def publish(folder: Path, out: Path) -> None:
    """Let `folder`, written to the disk with all its files, appear as `out`. Raises OSError."""
    for path in (*folder.iterdir(), folder):
        sync(path)
    folder.rename(out)
    sync(out.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path, wait: bool) -> int:
    """A descriptor with the lock on this folder, which is made if need be; the kernel ends it with us."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # whoever had the lock has just removed the folder
            continue
        with ExitStack() as on_failure:
            on_failure.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_open_as(folder / _LOCK, descriptor):
                on_failure.pop_all()
                return descriptor


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the open file, and to no other of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
