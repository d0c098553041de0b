"""The transfers that wait for one link, the most urgent first, and the threads that carry them."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from enum import Enum

from pgmoe.experts.links.base import Transfer, Urgency
from pgmoe.metrics.stats import LinkStats


class _State(Enum):
    WAITING = "waiting"
    RUNNING = "running"


class TransferQueue:
    """One link's queue. Equally urgent transfers go in the order in which they came.

    A waiting transfer stands in the heap once for each urgency that it ever had; only the entry with its
    present one counts.
    """

    def __init__(
        self,
        name: str,
        num_workers: int,
        move: Callable[[Transfer], int],
        done: Callable[[Transfer, Exception | None], None],
        stats: LinkStats,
    ) -> None:
        """`move` carries a transfer and returns the bytes moved, or raises; `done` hears of its end after
        that is counted, and may put it into another queue. Both run in a worker.
        """
        self._move = move
        self._done = done
        self._stats = stats
        self._heap: list[tuple[Urgency, int, Transfer]] = []
        self._states: dict[Transfer, _State] = {}
        self._numbers = itertools.count()
        self._num_running = 0
        self._busy_since = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"pgmoe-{name}-{n}", daemon=True)
            for n in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()

    def put(self, transfer: Transfer) -> None:
        """Queue a transfer with its present urgency. Raises RuntimeError after `close`."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the link is closed")
            self._states[transfer] = _State.WAITING
            self._push(transfer)
            self._changed.notify()

    def reorder(self, transfer: Transfer) -> None:
        """Its urgency has changed: if it waits here, it goes where that puts it."""
        with self._changed:
            if self._states.get(transfer) is _State.WAITING:
                self._push(transfer)
                self._changed.notify()  # a worker may have thrown away its former entry and gone to sleep

    def cancel(self, transfer: Transfer) -> bool:
        """Take it out if it still waits here."""
        with self._changed:
            if self._states.get(transfer) is not _State.WAITING:
                return False
            del self._states[transfer]
            return True

    def close(self) -> None:
        """Drop what waits, and return when the workers have ended what runs. May be called again."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _push(self, transfer: Transfer) -> None:
        heapq.heappush(self._heap, (transfer.urgency, next(self._numbers), transfer))

    def _work(self) -> None:
        while (transfer := self._take()) is not None:
            begin, num_bytes, failure = time.perf_counter(), 0, None
            try:
                num_bytes = self._move(transfer)
            except Exception as error:  # whatever it is, the one who waits must hear of it
                failure = error
            self._end(transfer, num_bytes, time.perf_counter() - begin)
            self._done(transfer, failure)

    def _take(self) -> Transfer | None:
        """The most urgent that waits, now running; None at the end."""
        with self._changed:
            while True:
                while self._heap:
                    urgency, _, transfer = heapq.heappop(self._heap)
                    if self._states.get(transfer) is _State.WAITING and urgency == transfer.urgency:
                        self._begin(transfer)
                        return transfer
                if self._closed:
                    return None
                self._changed.wait()

    def _begin(self, transfer: Transfer) -> None:
        self._states[transfer] = _State.RUNNING
        if not self._num_running:
            self._busy_since = time.perf_counter()
        self._num_running += 1

    def _end(self, transfer: Transfer, num_bytes: int, seconds: float) -> None:
        with self._changed:
            del self._states[transfer]
            self._num_running -= 1
            now = time.perf_counter()
            self._stats.busy_s += now - self._busy_since
            self._busy_since = now
            if num_bytes:
                self._stats.num_bytes[transfer.reason] += num_bytes
                self._stats.transfer_s.append(seconds)
