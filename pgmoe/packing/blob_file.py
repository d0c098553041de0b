"""A file of blobs being written, past the page cache where its file system allows it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self


class BlobFile:
    """Open for writing; what it holds already stays. All methods raise OSError."""

    def __init__(self, path: Path) -> None:
        """Open it, made if need be."""
        self._buffered = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._direct: int | None = None
        if hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:  # this file system has no O_DIRECT (tmpfs)
                self._direct = None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Any bytes, anywhere."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._buffered, data[done:], offset + done)

    def write_pages(self, pages: memoryview, offset: int) -> None:
        """Whole pages, from page-aligned memory to a page of the file."""
        if self._direct is not None:
            try:
                if os.pwrite(self._direct, pages, offset) == len(pages):
                    return
            except OSError as error:
                if error.errno != errno.EINVAL:  # it wants another alignment
                    raise
        self.write(pages, offset)  # which will find out why not all was written

    def sync(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._buffered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in (self._buffered, self._direct):
            if descriptor is not None:
                os.close(descriptor)
