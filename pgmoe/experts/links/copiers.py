"""The last hop, from host memory to a slot: within RAM, or over an accelerator's bus."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np
import torch

from pgmoe.experts.links.base import Transfer

COPIES_AHEAD = 2
"""Copies enqueued on the stream at once: one runs, one is ready to; more could not be overtaken."""


class Copier(Protocol):
    """Copies a transfer's host blob to its slot."""

    def mark(self) -> torch.Event | None:
        """Called by the computing thread when a transfer is ordered: what its copy has to wait for."""
        ...

    def copy(self, transfer: Transfer) -> int:
        """Copy, or enqueue the copy; returns the bytes. Always called by the same one thread."""
        ...

    def close(self) -> None:
        """Return when nothing is copied any more."""
        ...


class RamCopier:
    """Where slots are RAM as well."""

    def mark(self) -> None:
        """Copies are done when they return."""

    def copy(self, transfer: Transfer) -> int:
        """By numpy: a thread other than the computing one must not enter OpenMP, as torch would."""
        assert transfer.host is not None
        np.copyto(transfer.slot.numpy(), transfer.host.memory.numpy())
        return transfer.slot.nbytes

    def close(self) -> None:
        """Nothing is left."""


class StreamCopier:
    """Where slots are an accelerator's memory: a stream of its own, and events.

    For backends with CUDA's streams and events; the CPU's do nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = torch.get_device_module(device)
        # torch.cpu.Stream takes no device; without one an accelerator's is the current device's.
        self._stream = self._backend.Stream(**({} if device.type == "cpu" else {"device": device}))
        self._enqueued: deque[torch.Event] = deque()

    def mark(self) -> torch.Event:
        """After the kernels that still read the slot's former expert."""
        event: torch.Event = self._backend.Event()
        event.record(self._backend.current_stream(self._device))
        return event

    def copy(self, transfer: Transfer) -> int:
        """Enqueue it; waits while COPIES_AHEAD others are under way, so that urgent ones can overtake."""
        assert transfer.host is not None
        while len(self._enqueued) >= COPIES_AHEAD:
            self._enqueued.popleft().synchronize()
        with self._backend.stream(self._stream):
            if transfer.released is not None:
                self._stream.wait_event(transfer.released)
            transfer.slot.copy_(transfer.host.memory, non_blocking=True)
            event: torch.Event = self._backend.Event()
            event.record(self._stream)
        transfer.host.copied = event
        self._enqueued.append(event)
        return transfer.slot.nbytes

    def close(self) -> None:
        """Wait for the device."""
        self._backend.synchronize(self._device)
