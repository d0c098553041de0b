"""Experts read from the checkpoint's own files, past the page cache, straight into slots.

O_DIRECT asks that file offset, length and memory address be multiples of a page. A tensor in a slot starts as
far from a page boundary as it does in its file, so its whole pages go where they belong in one vectored read;
only the first and the last, shared with neighbours, pass through a scratch page.
"""

from __future__ import annotations

import os
import threading

import torch
from torch import Tensor

from pgmoe.errors import ExpertReadError
from pgmoe.experts.memory import page_aligned
from pgmoe.layout import PAGE, ExpertId, ExpertLayer, Extent, round_up


class _Scratch(threading.local):
    """Per-thread buffers: two edge pages, and a bounce buffer that grows to the longest extent met."""

    def __init__(self) -> None:
        self.edges = page_aligned(2 * PAGE).numpy().data
        self._bounce = memoryview(b"")

    def bounce(self, num_bytes: int) -> memoryview:
        if len(self._bounce) < num_bytes:
            self._bounce = page_aligned(num_bytes).numpy().data
        return self._bounce[:num_bytes]


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

    tier = "disk"

    def __init__(self, layers: tuple[ExpertLayer, ...], *, direct_io: bool = True) -> None:
        """Open every file that holds experts. Raises ExpertReadError if one cannot be opened."""
        self._layers = layers
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
        """One vectored read for each extent."""
        layer = self._layers[expert.layer]
        starts = self.starts(expert)
        memory = slot.numpy().data
        total = 0
        for extent in layer.extents[expert.expert]:
            try:
                self._read(extent, memory, starts[extent.tensor] + extent.tensor_offset)
            except OSError as error:
                raise ExpertReadError(
                    f"expert {expert.expert} of {layer.name}: {extent.path} at byte {extent.offset}: {error}"
                ) from error
            total += extent.nbytes
        return total

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _read(self, extent: Extent, memory: memoryview, start: int) -> None:
        file = self._files[extent.path]
        if file.direct is None:
            _read_fully(file.buffered, memory[start : start + extent.nbytes], extent.offset)
        elif start % PAGE == extent.offset % PAGE:
            self._read_in_place(file.direct, extent, memory, start)
        else:
            self._read_bounced(file.direct, extent, memory, start)

    def _read_in_place(self, descriptor: int, extent: Extent, memory: memoryview, start: int) -> None:
        """Whole pages to their place, the partial ones at either end through scratch pages."""
        end = start + extent.nbytes
        first, last = round_up(start), end // PAGE * PAGE  # the pages that are this extent's alone
        if first >= last:
            self._read_bounced(descriptor, extent, memory, start)
            return
        edges = self._scratch.edges
        vector = [memory[first:last]]
        if first > start:
            vector.insert(0, edges[:PAGE])
        if end > last:
            vector.append(edges[PAGE:])
        got = os.preadv(descriptor, vector, extent.offset // PAGE * PAGE)
        if got < extent.offset % PAGE + extent.nbytes:
            self._read_rest(extent, memory, start)
            return
        memory[start:first] = edges[PAGE - (first - start) : PAGE]
        memory[last:end] = edges[PAGE : PAGE + (end - last)]

    def _read_bounced(self, descriptor: int, extent: Extent, memory: memoryview, start: int) -> None:
        """Where the slot's address does not match the file's: read pages into a buffer and copy."""
        lead = extent.offset % PAGE
        buffer = self._scratch.bounce(round_up(lead + extent.nbytes))
        got = os.preadv(descriptor, [buffer], extent.offset - lead)
        if got < lead + extent.nbytes:
            self._read_rest(extent, memory, start)
            return
        source = torch.frombuffer(buffer, dtype=torch.uint8)[lead : lead + extent.nbytes]
        target = torch.frombuffer(memory, dtype=torch.uint8)[start : start + extent.nbytes]
        target.copy_(source)  # releases the interpreter lock, which a memoryview assignment does not

    def _read_rest(self, extent: Extent, memory: memoryview, start: int) -> None:
        """A short direct read: the ordinary way finds out whether the file really ends there."""
        _read_fully(self._files[extent.path].buffered, memory[start : start + extent.nbytes], extent.offset)


def _read_fully(descriptor: int, target: memoryview, offset: int) -> None:
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done:]], offset + done)
        if got == 0:
            raise OSError(f"the file ends {len(target) - done} bytes too early; it was truncated or replaced")
        done += got
