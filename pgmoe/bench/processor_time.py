"""Seconds of CPU that this process's threads took."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

READERS = "pgmoe-disk"
"""How the names of the threads begin that carry experts from the disk."""


@dataclass(frozen=True)
class ProcessorTime:
    """CPU seconds of all cores, by who took them."""

    compute_s: float
    """Of all threads but the readers: the one that computes, and those that torch computes with."""
    readers_s: float

    @classmethod
    def so_far(cls) -> ProcessorTime:
        """Of the threads that live now, and of those that computed and ended."""
        readers = [t.ident for t in threading.enumerate() if t.name.startswith(READERS)]
        clocks = [time.pthread_getcpuclockid(ident) for ident in readers if ident is not None]
        readers_s = sum(time.clock_gettime(clock) for clock in clocks)
        return cls(time.process_time() - readers_s, readers_s)

    def __sub__(self, before: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(self.compute_s - before.compute_s, self.readers_s - before.readers_s)
