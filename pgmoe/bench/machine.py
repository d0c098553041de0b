"""What a result depends on besides the code: processor, memory, disk, libraries."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from pgmoe.bench.disk_rate import read_rate
from pgmoe.bench.page_cache import largest

BLOCK_BYTES = 4 * 2**20
NUM_BLOCKS = 64
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "amx_tile")
_LIBRARIES = ("torch", "transformers", "accelerate", "safetensors")


@dataclass(frozen=True)
class Machine:
    """Described once for each result."""

    processor: str
    num_cores: int
    """Usable by this process."""
    flags: tuple[str, ...]
    """Of the instruction set, those that matter for matrix arithmetic."""
    ram_bytes: int
    kernel: str
    python: str
    libraries: dict[str, str]
    accelerator: str | None
    disk_bytes_per_s: float | None
    """Random reads of 4 MiB past the page cache, one at a time; None where that is not possible."""


def describe_machine(files: Sequence[Path]) -> Machine:
    """Look at this machine and read 256 MiB of `files`."""
    processor, flags = _processor()
    rate = read_rate(largest(files), 1, BLOCK_BYTES, NUM_BLOCKS * BLOCK_BYTES)
    return Machine(
        processor=processor,
        num_cores=len(os.sched_getaffinity(0)),
        flags=tuple(f for f in _FLAGS if f in flags),
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        python=platform.python_version(),
        libraries={name: version(name) for name in _LIBRARIES},
        accelerator=_accelerator(),
        disk_bytes_per_s=rate.bytes_per_s if rate else None,
    )


def _processor() -> tuple[str, set[str]]:
    entries: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    name = entries.get("model name", platform.machine())
    return name, set(entries.get("flags", "").split())


def _accelerator() -> str | None:
    if not torch.accelerator.is_available():
        return None
    backend = torch.get_device_module(torch.accelerator.current_accelerator())
    return str(backend.get_device_name()) if hasattr(backend, "get_device_name") else backend.__name__
