"""Files that experts are read from, past the page cache where their file system allows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence

from pgmoe.errors import ExpertReadError
from pgmoe.file_stamp import FileStamp
from pgmoe.layout import ExpertId, ExpertLayer


def place_of(expert: ExpertId, layer: ExpertLayer, path: str, offset: int) -> str:
    """Which expert, and where it is read: how every error of a store begins."""
    return f"expert {expert.expert} of {layer.name}: {path} from byte {offset}"


class ExpertFile:
    """One file opened twice: past the page cache if the file system allows it, and the ordinary way."""

    def __init__(self, path: str, *, direct_io: bool) -> None:
        """Raises OSError if it cannot be opened."""
        self._buffered = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.stamp = FileStamp(self._buffered)
        """What it was when it was opened. Read first, then look at it."""
        self._direct: int | None = None
        if direct_io and hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:  # this file system has no O_DIRECT (tmpfs)
                self._direct = None

    @property
    def direct_io(self) -> bool:
        """Whether it is read past the page cache."""
        return self._direct is not None

    def read(self, target: memoryview, offset: int) -> None:
        """Fill `target`, past the page cache if place and length allow it. Raises OSError."""
        if not self.read_pages([target], offset, len(target)):
            self.read_buffered(target, offset)

    def read_pages(self, targets: Sequence[memoryview], offset: int, needed: int) -> bool:
        """One vectored read past the page cache, of whole pages into page-aligned memory.

        False if that is not possible here or gives less than the `needed` bytes: `read_buffered` then gives
        them, or the reason why not. Raises OSError.
        """
        if self._direct is None:
            return False
        try:
            return os.preadv(self._direct, targets, offset) >= needed
        except OSError as error:
            if error.errno == errno.EINVAL:  # it wants another alignment
                return False
            raise

    def read_buffered(self, target: memoryview, offset: int) -> None:
        """Fill `target` with bytes from anywhere in the file. Raises OSError, also where the file ends."""
        done = 0
        while done < len(target):
            got = os.preadv(self._buffered, [target[done:]], offset + done)
            if got == 0:
                missing = len(target) - done
                raise OSError(f"the file ends {missing} bytes too early; it was truncated or replaced")
            done += got

    def close(self) -> None:
        """Give back both descriptors."""
        for descriptor in (self._buffered, self._direct):
            if descriptor is not None:
                os.close(descriptor)


class ExpertFiles:
    """Several of them by path."""

    def __init__(self, paths: Iterable[str], *, direct_io: bool) -> None:
        """Open them all. Raises ExpertReadError if one cannot be opened."""
        self._files: dict[str, ExpertFile] = {}
        for path in sorted(set(paths)):
            try:
                self._files[path] = ExpertFile(path, direct_io=direct_io)
            except OSError as error:
                self.close()
                raise ExpertReadError(f"{path}: {error.strerror}") from error

    @property
    def direct_io(self) -> bool:
        """Whether every file is read past the page cache."""
        return all(file.direct_io for file in self._files.values())

    def __getitem__(self, path: str) -> ExpertFile:
        """The open file."""
        return self._files[path]

    def close(self) -> None:
        """Close them all."""
        for file in self._files.values():
            file.close()
        self._files.clear()
