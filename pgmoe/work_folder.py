"""Where a large folder is written, by one process at a time and, if need be, in several tries."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgmoe.errors import ConfigError


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
            shutil.rmtree(work)
        finally:
            if work.exists() and not any(work.iterdir()):
                work.rmdir()
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
    """A descriptor of this folder, made if need be, that holds the lock on it; the kernel ends it with us."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = None
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # whoever had the lock has just removed the folder
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        if descriptor is not None:
            os.close(descriptor)
