"""What a link carries, measured at the start: utilisation and the limits of guesses are reckoned from it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.layout import ExpertId

MEASURE_S = 0.5
SPREAD_BYTES = 128 * 2**20
"""Memory to read into: more than the processor's caches hold. Into those the host of a virtual disk copies
faster than it can into slots."""
NUM_COPIES = 16

_logger = logging.getLogger(__name__)


def targets_needed(slot_bytes: int, num_readers: int) -> int:
    """How many slots `measure_reads` makes use of."""
    return max(num_readers, SPREAD_BYTES // slot_bytes)


def measure_reads(
    store: ExpertStore,
    experts: Sequence[ExpertId],
    targets: Sequence[Tensor],
    num_readers: int,
    seconds: float = MEASURE_S,
) -> float:
    """Bytes per second of so many readers, reading experts in random order; each once at most.

    They fill the first `targets_needed` of the targets, uint8 (slot_bytes,) in host memory, again and again.
    Ends after `seconds`. An expert that cannot be read ends it, too, and is left to whoever needs it.
    """
    targets = targets[: targets_needed(targets[0].nbytes, num_readers)]
    num_readers = min(num_readers, len(targets))
    for target in targets:
        target.fill_(0)  # or the first reads would pay for its pages
    order = iter(random.Random(0).sample(experts, len(experts)))
    begin = time.perf_counter()

    def read(reader: int) -> int:
        mine, done = cycle(targets[reader::num_readers]), 0
        while time.perf_counter() - begin < seconds:
            expert = next(order, None)  # one step of the interpreter, so safe for several threads
            if expert is None:
                break
            done += store.read(expert, next(mine))
        return done

    try:
        with ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-measure") as pool:
            total = sum(pool.map(read, range(num_readers)))
    except ExpertReadError as error:
        _logger.warning("measuring the disk: %s", error)
        return 0.0
    return total / (time.perf_counter() - begin)


def measure_copies(blob: Tensor, slot: Tensor) -> float:
    """Bytes per second from host memory to a slot, one copy after another. The slot's content is lost."""
    begin = time.perf_counter()
    for _ in range(NUM_COPIES):
        if slot.is_cpu:
            np.copyto(slot.numpy(), blob.numpy())
        else:
            slot.copy_(blob, non_blocking=True)
    if not slot.is_cpu:
        torch.get_device_module(slot.device).synchronize(slot.device)
    return NUM_COPIES * slot.nbytes / (time.perf_counter() - begin)
