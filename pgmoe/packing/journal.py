"""What a pack in the making has already, so that a killed process's work is not lost."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pgmoe.layout import ExpertId

DENSE = ExpertId(-1, -1)
"""Stands for the file of dense weights."""


class Journal:
    """A text file: its first line says of what, each other one what is written and its checksum.

    A line that a kill cut short does not count. A line may precede its bytes on the disk: whoever goes on
    compares the bytes with the checksum.
    """

    def __init__(self, path: Path, heading: str) -> None:
        """Go on with the journal at `path` if it has this heading, else begin it anew. Raises OSError."""
        self.checksums: dict[ExpertId, int] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        first, *lines = whole.split(b"\n")
        self.begun_anew = first != heading.encode()
        if not self.begun_anew:
            try:
                self.checksums = dict(map(_parse, filter(None, lines)))
            except ValueError:  # a power cut may leave zeros
                self.begun_anew = True
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
        try:
            self._file.truncate(0 if self.begun_anew else len(whole))
            if self.begun_anew:
                self._write(heading)
        except OSError:
            self._file.close()
            raise

    def add(self, expert: ExpertId, crc32: int) -> None:
        """Note what has been written. Raises OSError."""
        self._write(f"{expert.layer} {expert.expert} {crc32}")
        self.checksums[expert] = crc32

    def _write(self, line: str) -> None:
        """The whole of it: a disk that is all but full takes the beginning of a line without complaint."""
        left = memoryview(f"{line}\n".encode())
        while left:
            left = left[self._file.write(left) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _parse(line: bytes) -> tuple[ExpertId, int]:
    layer, expert, crc32 = map(int, line.split())
    return ExpertId(layer, expert), crc32
