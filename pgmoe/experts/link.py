"""Links: how an expert's bytes get from a store into a slot while compute goes on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from pgmoe.experts.stores.base import ExpertStore, Tier
from pgmoe.layout import ExpertId
from pgmoe.memory import page_aligned


@dataclass(frozen=True)
class Arrival:
    """The end of one transfer. With `error` the slot's content is undefined."""

    expert: ExpertId
    tier: Tier
    """Where it came from."""
    num_bytes: int
    seconds: float
    event: torch.Event | None = None
    """On an accelerator: what the compute stream has to wait for before it uses the slot."""
    error: Exception | None = None


class Link(Protocol):
    """Carries experts into slots."""

    def fetch(self, expert: ExpertId, slot: Tensor, arrivals: SimpleQueue[Arrival]) -> None:
        """Order a copy into `slot` and return; exactly one Arrival follows in `arrivals`, failed or not."""
        ...

    def close(self) -> None:
        """Wait for what is under way and stop."""
        ...


class HostLink:
    """Where slots are RAM: reader threads let the store write straight into them."""

    def __init__(self, store: ExpertStore, num_readers: int) -> None:
        self._store = store
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-reader")

    def fetch(self, expert: ExpertId, slot: Tensor, arrivals: SimpleQueue[Arrival]) -> None:
        """See Link."""
        self._readers.submit(self._carry, expert, slot, arrivals)

    def close(self) -> None:
        """See Link."""
        self._readers.shutdown()

    def _carry(self, expert: ExpertId, slot: Tensor, arrivals: SimpleQueue[Arrival]) -> None:
        begin, tier = time.perf_counter(), self._store.tier_of(expert)
        try:
            num_bytes = self._store.read(expert, slot)
        except Exception as error:  # whatever it is, the one who waits must hear of it
            arrivals.put(Arrival(expert, tier, 0, time.perf_counter() - begin, error=error))
        else:
            arrivals.put(Arrival(expert, tier, num_bytes, time.perf_counter() - begin))


class AcceleratorLink:
    """Where slots are device memory: pinned memory, a copy stream and events.

    An expert in host memory is pinned already, so its copy is only enqueued. One on disk is read by a thread
    into a pinned staging blob first. For backends with CUDA's streams and events; the CPU's do nothing.
    """

    def __init__(self, store: ExpertStore, num_readers: int, slot_bytes: int, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._backend = torch.get_device_module(device)
        # torch.cpu.Stream takes no device; without one an accelerator's is the current device's.
        self._stream = self._backend.Stream(**({} if device.type == "cpu" else {"device": device}))
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="pgmoe-reader")
        self._staging: SimpleQueue[tuple[Tensor, torch.Event | None]] = SimpleQueue()
        if "disk" in store.tiers:
            for _ in range(num_readers):
                self._staging.put((page_aligned(slot_bytes, pinned=device.type != "cpu"), None))

    def fetch(self, expert: ExpertId, slot: Tensor, arrivals: SimpleQueue[Arrival]) -> None:
        """See Link. Called by the thread whose current stream computes."""
        released = self._backend.Event()
        # Kernels that still read the slot's former expert:
        released.record(self._backend.current_stream(self._device))
        if self._store.tier_of(expert) == "disk":
            self._readers.submit(self._carry, expert, slot, arrivals, released)
        else:
            self._carry(expert, slot, arrivals, released)

    def close(self) -> None:
        """See Link."""
        self._readers.shutdown()
        self._backend.synchronize(self._device)

    def _carry(
        self, expert: ExpertId, slot: Tensor, arrivals: SimpleQueue[Arrival], released: torch.Event
    ) -> None:
        begin, tier = time.perf_counter(), self._store.tier_of(expert)
        try:
            copied = self._copy_staged if tier == "disk" else self._copy_pinned
            num_bytes, event = copied(expert, slot, released)
        except Exception as error:  # whatever it is, the one who waits must hear of it
            arrivals.put(Arrival(expert, tier, 0, time.perf_counter() - begin, error=error))
        else:
            arrivals.put(Arrival(expert, tier, num_bytes, time.perf_counter() - begin, event))

    def _copy_pinned(self, expert: ExpertId, slot: Tensor, released: torch.Event) -> tuple[int, torch.Event]:
        with self._backend.stream(self._stream):
            self._stream.wait_event(released)
            num_bytes = self._store.read(expert, slot)
            return num_bytes, self._record()

    def _copy_staged(self, expert: ExpertId, slot: Tensor, released: torch.Event) -> tuple[int, torch.Event]:
        blob, busy = self._staging.get()
        event = busy
        try:
            if busy is not None:
                busy.synchronize()  # the last copy out of this staging blob
            num_bytes = self._store.read(expert, blob)
            with self._backend.stream(self._stream):
                self._stream.wait_event(released)
                slot.copy_(blob, non_blocking=True)
                event = self._record()
            return num_bytes, event
        finally:
            self._staging.put((blob, event))

    def _record(self) -> torch.Event:
        event: torch.Event = self._backend.Event()
        event.record(self._stream)
        return event
