"""A pack's own description, `pack.json`: which files it has, how experts lie in them, and their checksums.

A pack is a checkpoint written anew so that an expert is one page-aligned range of a file, in the very layout
of a slot. `experts-NNNNN.safetensors` holds one MoE layer's experts as the rows of one uint8 tensor,
`dense.safetensors` everything else; config, tokenizer and chat template lie beside them as in any checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from pgmoe.encodings import Encoding
from pgmoe.errors import CorruptCheckpoint

PACK = "pack.json"
_WAY_OUT = "remove the pack and make it again"

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")]
"""Of a file in the folder itself."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PackedTensor(_Part):
    """One tensor of every expert of a layer."""

    name: str
    shape: tuple[NonNegativeInt, ...]
    dtype: str
    """As safetensors calls it."""
    offset: NonNegativeInt
    """Bytes from the start of the expert's blob."""


class PackedLayer(_Part):
    """One MoE layer's file: a header of `first_blob` bytes, then the experts' blobs."""

    name: str
    """Module path of the experts in the model."""
    file: FileName
    encoding: Encoding
    """As in `ExpertLayer`."""
    transposed: bool
    """As in `ExpertFFN`."""
    first_blob: NonNegativeInt
    """Bytes from the start of the file."""
    blob_bytes: NonNegativeInt
    """Of each blob, all of one size."""
    tensors: tuple[PackedTensor, ...]
    crc32: tuple[NonNegativeInt, ...]
    """Of each expert's blob."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return self.blob_offset(len(self.crc32))

    def blob_offset(self, expert: int) -> int:
        """Where in the file an expert's blob starts."""
        return self.first_blob + expert * self.blob_bytes


class DenseFile(_Part):
    """The file of all weights that are no experts'."""

    file: FileName
    file_bytes: NonNegativeInt
    crc32: NonNegativeInt
    """Of the whole file."""


class PackSource(_Part):
    """What the pack was made of."""

    name: str
    """The folder's name."""
    digest: str
    """Of its files' names, sizes, times, headers, and of the small ones' content."""
    files: dict[str, int]
    """Bytes of each weight file."""


class Pack(_Part):
    """Everything in `pack.json`."""

    version: Literal[1]
    source: PackSource
    dense: DenseFile
    layers: tuple[PackedLayer, ...]

    @property
    def num_bytes(self) -> int:
        """Of all weight files."""
        return sum(num_bytes for _, num_bytes in self.files())

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every weight file."""
        yield self.dense.file, self.dense.file_bytes
        for layer in self.layers:
            yield layer.file, layer.file_bytes

    def check_sizes(self, folder: Path) -> None:
        """Raise CorruptCheckpoint if a file is missing or longer or shorter than it should be."""
        for name, expected in self.files():
            try:
                found = (folder / name).stat().st_size
            except OSError as error:
                raise CorruptCheckpoint(f"{folder / name}: {error.strerror}; {_WAY_OUT}") from error
            if found != expected:
                raise CorruptCheckpoint(f"{folder / name}: {found} bytes instead of {expected}; {_WAY_OUT}")


def is_pack(folder: Path) -> bool:
    """Whether this folder is a pack, and not a checkpoint as others write them."""
    return (folder / PACK).is_file()


def read_pack(folder: Path) -> Pack:
    """The description of the pack in this folder. Raises CorruptCheckpoint."""
    try:
        return Pack.model_validate_json((folder / PACK).read_bytes())
    except OSError as error:
        why = str(error.strerror)
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    raise CorruptCheckpoint(f"{folder / PACK}: this version cannot read it ({why}); {_WAY_OUT}")
