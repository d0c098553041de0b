"""Filling a pack's files, as far as they are not filled already."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from pgmoe.experts.stores.checksum import checksum
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.files import ExpertFile
from pgmoe.layout import ExpertId
from pgmoe.memory import page_aligned
from pgmoe.models.loader import ModelPlan
from pgmoe.models.pack import Pack, PackedLayer
from pgmoe.packing.blob_file import BlobFile
from pgmoe.packing.draft import dense_tensors
from pgmoe.packing.header import dense_header, expert_header
from pgmoe.packing.journal import DENSE, Journal


class PackWriter:
    """Writes the weight files of one pack to `folder`."""

    def __init__(
        self,
        plan: ModelPlan,
        draft: Pack,
        folder: Path,
        journal: Journal,
        advance: Callable[[int], None],
    ) -> None:
        """`advance` gets the bytes of each part once it is written, or found to be there already."""
        self._plan = plan
        self._draft = draft
        self._folder = folder
        self._journal = journal
        self._advance = advance

    def write(self) -> Pack:
        """Write what is missing; the draft with all checksums. Raises OSError for writing, ExpertReadError or
        CorruptCheckpoint for reading.
        """
        dense = self._dense()
        # The very read of serving, but that tensors go where the blob has them.
        source = DiskStore(tuple(replace(x, layout=x.layout.tightened()) for x in self._plan.layers))
        with closing(source):
            layers = [self._layer(index, layer, source) for index, layer in enumerate(self._draft.layers)]
        return self._draft.model_copy(update={"dense": dense, "layers": tuple(layers)})

    def _dense(self) -> object:
        packed = self._draft.dense
        path = self._folder / packed.file
        if self._stands(DENSE, path, 0, packed.file_bytes):
            self._advance(packed.file_bytes)
        else:
            crc32 = 0
            with open(path, "wb") as file:
                for part in self._dense_parts():
                    crc32 = zlib.crc32(part, crc32)
                    file.write(part)
                    self._advance(len(part))
            self._journal.add(DENSE, crc32)
        return packed.model_copy(update={"crc32": self._journal.checksums[DENSE]})

    def _dense_parts(self) -> Iterator[memoryview]:
        tensors = dense_tensors(self._plan)
        yield memoryview(dense_header(tensors))
        for tensor in tensors:
            yield tensor[...].reshape(-1).view(torch.uint8).numpy().data

    def _layer(self, index: int, packed: PackedLayer, source: DiskStore) -> PackedLayer:
        path = self._folder / packed.file
        blob = page_aligned(packed.blob_bytes).zero_()
        memory = blob.numpy().data
        with BlobFile(path) as file:
            file.write(expert_header(len(packed.crc32), packed.blob_bytes), 0)
            self._advance(packed.first_blob)
            for number in range(len(packed.crc32)):
                expert, offset = ExpertId(index, number), packed.blob_offset(number)
                if not self._stands(expert, path, offset, packed.blob_bytes):
                    source.read(expert, blob)
                    file.write_pages(memory, offset)
                    self._journal.add(expert, zlib.crc32(memory))
                self._advance(packed.blob_bytes)
            file.sync()  # here, so that the end does not wait for all layers
        crc32 = tuple(self._journal.checksums[ExpertId(index, e)] for e in range(len(packed.crc32)))
        return packed.model_copy(update={"crc32": crc32})

    def _stands(self, expert: ExpertId, path: Path, offset: int, nbytes: int) -> bool:
        """Whether the file has what the journal says."""
        expected = self._journal.checksums.get(expert)
        if expected is None:
            return False
        try:
            file = ExpertFile(str(path), direct_io=False)
        except FileNotFoundError:
            return False
        try:
            return checksum(file, offset, nbytes) == expected
        except OSError:  # it ends too early, or cannot be read: written anew, it will be
            return False
        finally:
            file.close()
