"""Page-aligned memory: what O_DIRECT reads into and pinned copies leave from."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

import torch
from torch import Tensor

from pgmoe.layout import PAGE

HUGE_PAGE = 2 << 20
"""Bytes."""

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_LARGE_BYTES = 256 * 2**10


def return_large_blocks() -> None:
    """From now on glibc's malloc gives blocks of 256 KiB and more back to the system as they are freed.

    For the whole process. Left alone it keeps ever larger blocks in its heap, and a KV cache that grows by a
    token at a time leaves holes there, measured at most of its own size. Nothing happens with another malloc.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def page_aligned(num_bytes: int, *, device: torch.device | None = None, pinned: bool = False) -> Tensor:
    """Uninitialised uint8 memory whose address is a multiple of PAGE.

    Large plain host memory asks for huge pages: experts are read from end to end, and for each read past the
    page cache the kernel has to hold every page of its target.
    """
    assert num_bytes >= 0, num_bytes
    device = device or torch.device("cpu")
    if device.type == "cpu" and not pinned:
        return _mapped(num_bytes)
    raw = torch.empty(num_bytes + PAGE, dtype=torch.uint8, device=device, pin_memory=pinned)
    skip = -raw.data_ptr() % PAGE
    return raw[skip : skip + num_bytes]


def _mapped(num_bytes: int) -> Tensor:
    memory = mmap.mmap(-1, max(num_bytes, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them; ordinary pages do
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]
