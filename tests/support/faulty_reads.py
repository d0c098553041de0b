"""Disks that fail: the one system call that reads weights, made to fail for one place of one file."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pgmoe.layout import ExpertLayer

ALWAYS = 10**9
_preadv = os.preadv


@dataclass
class FaultyReads:
    """`os.preadv` but for reads of one byte of one file, of which the next `times` fail with EIO."""

    path: Path
    offset: int
    times: int
    num_failed: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FaultyReads:
        """From now on, until it is undone."""
        monkeypatch.setattr(os, "preadv", self)
        return self

    def __call__(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset <= self.offset < offset + sum(map(len, buffers)) and self._is_it(descriptor):
            with self._lock:
                if self.num_failed < self.times:
                    self.num_failed += 1
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        return _preadv(descriptor, buffers, offset)

    def _is_it(self, descriptor: int) -> bool:
        return os.path.samestat(os.fstat(descriptor), self.path.stat())


def middle_of(layer: ExpertLayer, expert: int) -> tuple[Path, int]:
    """A file and a byte of it that no read but this expert's touches."""
    place = layer.blobs[expert] if layer.blobs else layer.extents[expert][0]
    return Path(place.path), place.offset + place.nbytes // 2
