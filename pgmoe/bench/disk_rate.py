"""What a disk gives without us: plain direct reads at random places, by one thread or several."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pgmoe.bench.page_cache import largest, weight_files
from pgmoe.errors import ConfigError
from pgmoe.layout import PAGE
from pgmoe.memory import page_aligned

THREADS = (1, 2, 4)
BLOCK_BYTES = (2**20, 4 * 2**20)
RATE_BYTES = 192 * 2**20
"""Read in each way of reading for the disk's own rate."""
TARGET_BYTES = 64 * 2**20
"""Memory that each thread reads into, place after place, as into slots: more than processor caches hold. Into
one place of a few megabytes a virtual disk, whose host copies what it has read, is a third faster."""


@dataclass(frozen=True)
class DiskRate:
    """One way of reading and what came of it."""

    num_threads: int
    block_bytes: int
    bytes_per_s: float


def read_rate(path: Path, num_threads: int, block_bytes: int, num_bytes: int) -> DiskRate | None:
    """Read `num_bytes` of the file past the page cache; None if that cannot be, or it is below a block."""
    num_places = (path.stat().st_size - block_bytes) // PAGE + 1
    if num_places < 1:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # this file system has no O_DIRECT
        return None
    num_reads = max(1, num_bytes // block_bytes // num_threads)
    num_targets = max(1, TARGET_BYTES // block_bytes)
    buffers = [page_aligned(num_targets * block_bytes).numpy() for _ in range(num_threads)]
    for buffer in buffers:
        buffer.fill(0)  # or the first reads would pay for its pages

    def work(thread: int) -> int:
        draw, total = random.Random(thread), 0
        for number in range(num_reads):
            begin = number % num_targets * block_bytes
            target = buffers[thread][begin : begin + block_bytes].data
            total += os.preadv(descriptor, [target], draw.randrange(num_places) * PAGE)
        return total

    try:
        with ThreadPoolExecutor(num_threads) as threads:
            begin = time.perf_counter()
            total = sum(threads.map(work, range(num_threads)))
            seconds = time.perf_counter() - begin
    finally:
        os.close(descriptor)
    return DiskRate(num_threads, block_bytes, total / seconds)


def read_rates(
    path: Path, num_bytes: int, blocks: Sequence[int] = BLOCK_BYTES, threads: Sequence[int] = THREADS
) -> tuple[DiskRate, ...]:
    """Every combination in turn, so many bytes each; empty where `read_rate` gives None."""
    found = [read_rate(path, n, block, num_bytes) for block in blocks for n in threads]
    return tuple(rate for rate in found if rate is not None)


def best_rate(path: Path, num_bytes: int, blocks: Sequence[int] = BLOCK_BYTES) -> DiskRate | None:
    """The fastest of them: the disk's own rate."""
    rates = read_rates(path, num_bytes, blocks)
    return max(rates, key=lambda rate: rate.bytes_per_s) if rates else None


def own_rate(model: str) -> float:
    """Bytes per second of a checkpoint's disk. Raises ConfigError where it cannot be read directly."""
    rate = best_rate(largest(weight_files(model)), RATE_BYTES)
    if rate is None:
        raise ConfigError(f"{model} cannot be read past the page cache; put it on another disk")
    return rate.bytes_per_s
