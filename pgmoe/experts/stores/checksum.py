"""Checksums of what a file holds, read without filling the page cache."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from pgmoe.experts.stores.files import ExpertFile
from pgmoe.memory import page_aligned

PIECE_BYTES = 1 << 20


def checksum(
    file: ExpertFile, offset: int, nbytes: int, after_piece: Callable[[], None] = lambda: None
) -> int:
    """The CRC-32 of a range of the file, read piece by piece. Raises OSError, also where the file ends."""
    buffer = page_aligned(min(nbytes, PIECE_BYTES)).numpy().data
    crc = 0
    for begin in range(0, nbytes, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, nbytes - begin)]
        file.read(piece, offset + begin)
        crc = zlib.crc32(piece, crc)
        after_piece()
    return crc
