"""A link that is only reckoned with: for tests, and for figures of links that this machine does not have.

Every expert lies in RAM already. It becomes visible when a serial link of the stated bandwidth and latency
would have delivered it; nothing is copied. Figures from it have to be labelled so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.links.base import Arrival, Transfer, Urgency
from pgmoe.layout import ExpertId
from pgmoe.metrics.stats import LinkStats

EMULATED = "emulated"
SPIN_S = 2e-4
"""Seconds before the end of a wait that are spent looking at the clock: a sleep may last so much too long."""


class Clock(Protocol):
    """Time, and how it passes."""

    def now(self) -> float:
        """Seconds."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, as nearly as can be."""
        ...


class WallClock:
    """The real one."""

    def now(self) -> float:
        """See Clock."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """See Clock."""
        if (rest := moment - time.perf_counter() - SPIN_S) > 0:
            time.sleep(rest)
        while time.perf_counter() < moment:
            pass


class EmulatedLink:
    """One transfer at a time, the most urgent first, among equals the first ordered. See Link."""

    def __init__(
        self,
        source: HostTier,
        size_of: Callable[[ExpertId], int],
        stats: LinkStats,
        *,
        bandwidth: float,
        latency_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        """`source` holds every expert; `bandwidth` in bytes per second, `latency_s` for each transfer."""
        self._source = source
        self._size_of = size_of
        self._stats = stats
        self._bandwidth = bandwidth
        self._latency_s = latency_s
        self._clock = clock or WallClock()
        self._waiting: list[Transfer] = []
        self._running: tuple[Transfer, float] | None = None
        """With the moment of its end."""
        self._arrived: deque[Arrival] = deque()
        stats.bandwidth = bandwidth

    def order(self, transfer: Transfer) -> None:
        """See Link."""
        now = self._clock.now()
        self._advance(now)
        self._waiting.append(transfer)
        if self._running is None:
            self._begin(now)

    def promote(self, transfer: Transfer, urgency: Urgency) -> None:
        """See Link."""
        self._advance(self._clock.now())
        transfer.urgency = min(urgency, transfer.urgency)

    def cancel(self, transfer: Transfer) -> bool:
        """See Link."""
        self._advance(self._clock.now())
        if transfer not in self._waiting:
            return False
        self._waiting.remove(transfer)
        return True

    def wait(self) -> Arrival:
        """See Link."""
        self._advance(self._clock.now())
        while not self._arrived:
            assert self._running is not None, "nothing is under way"
            self._clock.sleep_until(self._running[1])
            self._advance(self._clock.now())
        return self._arrived.popleft()

    def arrived(self) -> list[Arrival]:
        """See Link."""
        self._advance(self._clock.now())
        found = list(self._arrived)
        self._arrived.clear()
        return found

    def close(self) -> None:
        """Nothing runs."""

    def _advance(self, now: float) -> None:
        """Let happen what has happened by `now`."""
        while self._running is not None and self._running[1] <= now:
            transfer, end = self._running
            self._running = None
            self._deliver(transfer)
            if self._waiting:
                self._begin(end)

    def _begin(self, moment: float) -> None:
        transfer = min(self._waiting, key=lambda t: t.urgency)  # the first ordered of the most urgent
        self._waiting.remove(transfer)
        seconds = self._latency_s + self._size_of(transfer.expert) / self._bandwidth
        self._running = (transfer, moment + seconds)
        self._stats.busy_s += seconds
        self._stats.transfer_s.append(seconds)

    def _deliver(self, transfer: Transfer) -> None:
        self._stats.num_bytes[transfer.reason] += self._size_of(transfer.expert)
        self._arrived.append(Arrival(transfer, self._source.blob(transfer.expert)))
