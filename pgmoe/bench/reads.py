"""Reading experts while the other core computes: how near to the disk's own rate, at what cost to compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from random import Random

import torch

from pgmoe.bench.compare import Progress
from pgmoe.bench.compute_load import ComputeLoad
from pgmoe.bench.disk_rate import BLOCK_BYTES, RATE_BYTES, DiskRate, read_rates
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import drop_from_page_cache, largest, weight_files
from pgmoe.bench.reads_result import ReadsResult, ReadsRound, ReadsSeries
from pgmoe.bench.result import current_commit, now
from pgmoe.errors import ConfigError
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.opening import open_disk_store
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.models.loader import read_plan

SLOTS_PER_READER = 16
"""Where a reader's experts go in turn."""


def measure_reads(
    model: str, readers: Sequence[int], num_rounds: int, seconds: float, progress: Progress
) -> ReadsResult:
    """Each number of readers for so long, every round; beside a loop that computes on one core.

    Raises ConfigError for a file that cannot be read past the page cache, CheckpointError, ExpertReadError.
    """
    plan = read_plan(model)
    files = weight_files(plan.checkpoint.folder)
    machine = describe_machine(files)
    commit = current_commit()
    store = open_disk_store(plan.layers, direct_io=True, check_pack=False)
    with ExitStack() as at_end:
        at_end.callback(store.close)
        at_end.enter_context(_one_compute_thread())
        bench = _Reads(plan.layers, store, max(readers), seconds)
        disk: list[tuple[DiskRate, ...]] = []
        alone: list[float] = []
        rounds: dict[int, list[ReadsRound]] = {n: [] for n in readers}
        for number in range(num_rounds):
            drop_from_page_cache(files)
            progress("the disk alone", number, num_rounds)
            blocks = sorted({*BLOCK_BYTES, bench.expert_bytes // 4096 * 4096})
            disk.append(_plain_rates(largest(files), blocks))
            alone.append(bench.compute.run(seconds))
            for num_readers in readers:
                progress(f"{num_readers} readers", number, num_rounds)
                rounds[num_readers].append(bench.measure(num_readers))
        progress("done", num_rounds, num_rounds)
    return ReadsResult(
        name=f"reads-{Path(model).name}",
        date=now(),
        commit=commit,
        machine=machine,
        conditions=_conditions(model, num_rounds, seconds),
        expert_bytes=bench.expert_bytes,
        disk=tuple(disk),
        compute_alone_per_s=tuple(alone),
        series=tuple(ReadsSeries(n, tuple(r)) for n, r in rounds.items()),
    )


def _plain_rates(path: Path, blocks: Sequence[int]) -> tuple[DiskRate, ...]:
    rates = read_rates(path, RATE_BYTES, blocks)
    if not rates:
        raise ConfigError(f"{path} cannot be read past the page cache; put it on another disk")
    return rates


class _Reads:
    """The store's readers with slots to fill, and compute beside them."""

    def __init__(
        self, layers: tuple[ExpertLayer, ...], store: ExpertStore, most_readers: int, seconds: float
    ) -> None:
        self.compute = ComputeLoad(layers, store)
        self.expert_bytes = max(layer.layout.weight_bytes for layer in layers)
        self._store = store
        self._seconds = seconds
        self._experts = [ExpertId(i, e) for i, x in enumerate(layers) for e in range(x.num_experts)]
        Random(0).shuffle(self._experts)
        slot_bytes = max(layer.layout.slot_bytes for layer in layers)
        self._arena = SlotArena(most_readers * SLOTS_PER_READER, slot_bytes, torch.device("cpu"))
        for index in range(self._arena.num_slots):
            self._arena.slot(index).numpy().fill(0)  # or the first reads would pay for their pages

    def measure(self, num_readers: int) -> ReadsRound:
        """Readers and compute at once."""
        stop = threading.Event()

        def read(reader: int) -> int:
            num_bytes = 0
            for turn in count():
                expert = self._experts[(turn * num_readers + reader) % len(self._experts)]
                slot = self._arena.slot(reader * SLOTS_PER_READER + turn % SLOTS_PER_READER)
                num_bytes += self._store.read(expert, slot)
                if stop.is_set():
                    break
            return num_bytes

        with ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-reader") as threads:
            begin = time.perf_counter()
            reads = [threads.submit(read, reader) for reader in range(num_readers)]
            compute_per_s = self.compute.run(self._seconds)
            stop.set()
            num_bytes = sum(done.result() for done in reads)
            return ReadsRound(num_bytes / (time.perf_counter() - begin), compute_per_s)


@contextmanager
def _one_compute_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _conditions(model: str, num_rounds: int, seconds: float) -> dict[str, str]:
    return {
        "workload": f"experts of {Path(model).name} in random order, by the engine's store into slots",
        "compute": "one thread: one token through a layer's experts that lie in memory, again and again",
        "order": f"{num_rounds} interleaved rounds, {seconds:g} s each; ratios are taken within a round",
        "the disk's own rate": (
            "plain direct reads at random places of the largest file, nothing else running: the best of 1, 2 "
            "and 4 threads and of blocks of 1 MiB, 4 MiB and an expert's size"
        ),
    }
