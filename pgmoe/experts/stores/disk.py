"""Experts read from the checkpoint's own files, past the page cache, straight into slots."""

from __future__ import annotations

import threading

import numpy as np
from torch import Tensor

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.files import ExpertFile, ExpertFiles, place_of
from pgmoe.experts.stores.read_plan import Run, plan_reads
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.memory import page_aligned


class _Scratch(threading.local):
    """A page-aligned buffer for each thread, as large as its largest use so far."""

    def __init__(self) -> None:
        self._memory = page_aligned(0)

    def take(self, num_bytes: int) -> Tensor:
        if self._memory.nbytes < num_bytes:
            self._memory = page_aligned(num_bytes)
        return self._memory[:num_bytes]


class DiskStore:
    """The disk tier. See ExpertStore for the contract of its methods."""

    def __init__(self, layers: tuple[ExpertLayer, ...], *, direct_io: bool = True) -> None:
        """Open every file that holds experts. Raises ExpertReadError if one cannot be opened."""
        self._layers = layers
        self._plans: dict[ExpertId, tuple[Run, ...]] = {}
        self._scratch = _Scratch()
        paths = (extent.path for layer in layers for extents in layer.extents for extent in extents)
        self._files = ExpertFiles(paths, direct_io=direct_io)

    @property
    def direct_io(self) -> bool:
        """Whether every file is read past the page cache."""
        return self._files.direct_io

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """Each tensor lies in its region as far from a page boundary as in its file."""
        layer = self._layers[expert.layer]
        return layer.layout.starts(layer.extents[expert.expert])

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """One vectored read for each consecutive range of a file."""
        layer = self._layers[expert.layer]
        if expert not in self._plans:
            self._plans[expert] = plan_reads(layer.extents[expert.expert], self.starts(expert))
        for run in self._plans[expert]:
            try:
                self._read(run, slot)
                change = self._files[run.path].stamp.change()
                if change is not None:
                    raise OSError(change)
            except OSError as error:
                place = place_of(expert, layer, run.path, run.offset)
                raise ExpertReadError(f"{place}: {error}") from error
        return layer.layout.weight_bytes

    def verify(self, expert: ExpertId, slot: Tensor) -> None:
        """Nothing is known of what it should be."""

    def is_corrupt(self, expert: ExpertId) -> bool:
        """Never known."""
        return False

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def _read(self, run: Run, slot: Tensor) -> None:
        file = self._files[run.path]
        if not (file.direct_io and self._read_direct(file, run, slot)):
            memory = slot.numpy().data
            for offset, place, nbytes in run.pieces:
                file.read_buffered(memory[place : place + nbytes], offset)

    def _read_direct(self, file: ExpertFile, run: Run, slot: Tensor) -> bool:
        """Read the run's pages and patch what went to the scratch; False if it has to be read otherwise."""
        memory, scratch = slot.numpy(), self._scratch.take(run.scratch_bytes).numpy()
        targets = [(memory if s.direct else scratch)[s.start : s.start + s.nbytes].data for s in run.segments]
        if not file.read_pages(targets, run.offset, run.needed):
            return False
        for patch in run.patches:
            # numpy releases the interpreter lock, which a memoryview does not, and starts no OpenMP threads
            # for this one, which torch does: beyond the number of cores they slow each other down.
            source = scratch[patch.scratch : patch.scratch + patch.nbytes]
            np.copyto(memory[patch.slot : patch.slot + patch.nbytes], source)
        return True
