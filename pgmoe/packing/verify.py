"""Is every byte of a pack still what was written?"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pgmoe.errors import ConfigError
from pgmoe.experts.stores.checksum import checksum
from pgmoe.experts.stores.files import ExpertFile
from pgmoe.models.checkpoint import resolve_folder
from pgmoe.models.pack import Pack, is_pack, read_pack
from pgmoe.packing.header import expert_header
from pgmoe.packing.pack import Progress

NUM_READERS = 2


@dataclass(frozen=True)
class Part:
    """A range of a file that has a checksum of its own."""

    file: str
    what: str
    """`dense weights`, a layer's `header`, an `expert`; `whole file` where there is too much of it."""
    layer: str | None
    expert: int | None
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True)
class Corrupt:
    """A part that is not what was written, and how that shows."""

    part: Part
    why: str

    def __str__(self) -> str:
        p = self.part
        of = "" if p.layer is None else f" of {p.layer}"
        number = "" if p.expert is None else f" {p.expert}"
        return f"{p.file}: {p.what}{number}{of}, {p.nbytes} bytes from byte {p.offset}: {self.why}"


@dataclass(frozen=True)
class Verified:
    """What was read, and what of it is corrupt."""

    folder: Path
    num_parts: int
    num_bytes: int
    corrupt: tuple[Corrupt, ...]


def verify_pack(folder: str, progress: Progress | None = None) -> Verified:
    """Read a whole pack and compare it with its checksums.

    Raises ConfigError if it is no pack, CorruptCheckpoint if its description cannot be read.
    """
    path = resolve_folder(folder, weights=False)
    if not is_pack(path):
        raise ConfigError(f"{folder}: no pack; `pgmoe pack` makes one of a checkpoint")
    pack = read_pack(path)
    parts = list(_parts(pack))
    corrupt, done = list(_too_long(path, pack)), 0
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="pgmoe-verify") as pool:
        for part, why in zip(parts, pool.map(lambda part: _fault(path, part), parts), strict=True):
            done += part.nbytes
            if why is not None:
                corrupt.append(Corrupt(part, why))
            if progress is not None:
                progress(done, pack.num_bytes)
    return Verified(path, len(parts), done, tuple(corrupt))


def _too_long(folder: Path, pack: Pack) -> Iterator[Corrupt]:
    """Files with bytes beyond all parts, which no checksum covers."""
    for name, nbytes in pack.files():
        found = (folder / name).stat().st_size if (folder / name).exists() else 0
        if found > nbytes:
            whole = Part(name, "whole file", None, None, 0, nbytes, 0)
            yield Corrupt(whole, f"it has {found} bytes")


def _parts(pack: Pack) -> Iterator[Part]:
    dense = pack.dense
    yield Part(dense.file, "dense weights", None, None, 0, dense.file_bytes, dense.crc32)
    for layer in pack.layers:
        header = expert_header(len(layer.crc32), layer.blob_bytes)
        yield Part(layer.file, "header", layer.name, None, 0, layer.first_blob, zlib.crc32(header))
        for expert, crc32 in enumerate(layer.crc32):
            offset = layer.blob_offset(expert)
            yield Part(layer.file, "expert", layer.name, expert, offset, layer.blob_bytes, crc32)


def _fault(folder: Path, part: Part) -> str | None:
    """What is wrong with it, if anything is."""
    try:
        file = ExpertFile(str(folder / part.file), direct_io=True)
    except OSError as error:
        return str(error.strerror)
    try:
        found = checksum(file, part.offset, part.nbytes)
    except OSError as error:
        return str(error)
    finally:
        file.close()
    return None if found == part.crc32 else "its checksum is not that of pack.json"
