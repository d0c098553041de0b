"""Experts read from a pack: one read for each, straight into its slot."""

from __future__ import annotations

import zlib

from torch import Tensor

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.files import ExpertFiles, place_of
from pgmoe.experts.stores.pack_check import PackCheck
from pgmoe.layout import ExpertId, ExpertLayer


class PackStore:
    """The disk tier where every expert is one blob. See ExpertStore for the contract of its methods."""

    def __init__(
        self, layers: tuple[ExpertLayer, ...], *, direct_io: bool = True, check: bool = False
    ) -> None:
        """Open the files of a pack's layers; with `check`, compare all blobs with their checksums meanwhile.

        Raises ExpertReadError if a file cannot be opened.
        """
        self._layers = layers
        paths = (blob.path for layer in layers for blob in layer.blobs)
        self._files = ExpertFiles(paths, direct_io=direct_io)
        self._check = PackCheck(layers, self._files)
        self._checked = check
        if check:
            self._check.start()

    @property
    def direct_io(self) -> bool:
        """Whether every file is read past the page cache."""
        return self._files.direct_io

    @property
    def check(self) -> PackCheck:
        """The comparison with the checksums, and what it found."""
        return self._check

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """Each tensor lies in its slot as in its blob."""
        return {region.name: region.offset for region in self._layers[expert.layer].layout.regions}

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """One read. Raises ExpertReadError for a blob that was found corrupt, too.

        Blobs of a file that has changed while it is open are compared with their checksums from then on.
        """
        corrupt = self._check.corrupt.get(expert)
        if corrupt is not None:
            raise ExpertReadError(corrupt)
        layer = self._layers[expert.layer]
        blob = layer.blobs[expert.expert]
        file, memory = self._files[blob.path], slot.numpy().data[: blob.nbytes]
        try:
            file.read(memory, blob.offset)
            change = file.stamp.change()
            if change is not None and zlib.crc32(memory) != blob.crc32:
                raise OSError(change)
        except OSError as error:
            place = place_of(expert, layer, blob.path, blob.offset)
            raise ExpertReadError(f"{place}: {error}") from error
        return layer.layout.weight_bytes

    def verify(self, expert: ExpertId, slot: Tensor) -> None:
        """Compare with the checksum, if the pack is to be checked at all."""
        if self._checked:
            nbytes = self._layers[expert.layer].blobs[expert.expert].nbytes
            if not self._check.compare(expert, zlib.crc32(slot.numpy().data[:nbytes])):
                raise ExpertReadError(self._check.corrupt[expert])

    def is_corrupt(self, expert: ExpertId) -> bool:
        """Whether the comparison has found it so."""
        return expert in self._check.corrupt

    def close(self) -> None:
        """End the check and close all files."""
        self._check.stop()
        self._files.close()
