"""Experts read from the checkpoint's own files, past the page cache, straight into slots."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
from torch import Tensor

from pgmoe.errors import ExpertReadError
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


class _File:
    """One file opened twice: past the page cache if the file system allows it, and the ordinary way."""

    def __init__(self, path: str, direct_io: bool) -> None:
        self.buffered = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.direct: int | None = None
        if direct_io and hasattr(os, "O_DIRECT"):
            try:
                self.direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:  # this file system has no O_DIRECT (tmpfs)
                self.direct = None

    def close(self) -> None:
        for descriptor in (self.buffered, self.direct):
            if descriptor is not None:
                os.close(descriptor)


class DiskStore:
    """The disk tier. See ExpertStore for the contract of its methods."""

    def __init__(self, layers: tuple[ExpertLayer, ...], *, direct_io: bool = True) -> None:
        """Open every file that holds experts. Raises ExpertReadError if one cannot be opened."""
        self._layers = layers
        self._plans: dict[ExpertId, tuple[Run, ...]] = {}
        self._scratch = _Scratch()
        self._files: dict[str, _File] = {}
        paths = {extent.path for layer in layers for extents in layer.extents for extent in extents}
        for path in sorted(paths):
            try:
                self._files[path] = _File(path, direct_io)
            except OSError as error:
                self.close()
                raise ExpertReadError(f"{path}: {error.strerror}") from error

    @property
    def direct_io(self) -> bool:
        """Whether every file is read past the page cache."""
        return all(f.direct is not None for f in self._files.values())

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
            except OSError as error:
                raise ExpertReadError(
                    f"expert {expert.expert} of {layer.name}: {run.path} from byte {run.offset}: {error}"
                ) from error
        return layer.layout.weight_bytes

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _read(self, run: Run, slot: Tensor) -> None:
        file = self._files[run.path]
        if file.direct is None or not self._read_direct(file.direct, run, slot):
            memory = slot.numpy().data
            for offset, place, nbytes in run.pieces:
                _read_fully(file.buffered, memory[place : place + nbytes], offset)

    def _read_direct(self, descriptor: int, run: Run, slot: Tensor) -> bool:
        """Read the run's pages and patch what went to the scratch.

        False if less came than is needed, or the file system refuses such a read after all.
        """
        memory, scratch = slot.numpy(), self._scratch.take(run.scratch_bytes).numpy()
        targets = [(memory if s.direct else scratch)[s.start : s.start + s.nbytes].data for s in run.segments]
        try:
            if os.preadv(descriptor, targets, run.offset) < run.needed:
                return False  # the ordinary way will find out whether the file really ends there
        except OSError as error:
            if error.errno == errno.EINVAL:  # it wants a coarser alignment than a page
                return False
            raise
        for patch in run.patches:
            # numpy releases the interpreter lock, which a memoryview does not, and starts no OpenMP threads
            # for this one, which torch does: beyond the number of cores they slow each other down.
            source = scratch[patch.scratch : patch.scratch + patch.nbytes]
            np.copyto(memory[patch.slot : patch.slot + patch.nbytes], source)
        return True


def _read_fully(descriptor: int, target: memoryview, offset: int) -> None:
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done:]], offset + done)
        if got == 0:
            raise OSError(f"the file ends {len(target) - done} bytes too early; it was truncated or replaced")
        done += got
