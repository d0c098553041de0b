"""Transfers of nothing in particular, and a clock that stands still."""

from __future__ import annotations

import itertools
from queue import SimpleQueue
from threading import Condition

import torch

from pgmoe.experts.links.base import Transfer, Urgency
from pgmoe.layout import ExpertId

PATIENCE_S = 60.0
"""How long a test waits for what has to happen at once; only a failing one waits so long."""

_numbers = itertools.count()


def transfer(urgency: Urgency = Urgency.DEMAND, reason: str = "demand") -> Transfer:
    """A new one, of an expert that no other has."""
    return Transfer(ExpertId(0, next(_numbers)), torch.empty(0, dtype=torch.uint8), urgency, reason)


class FakeClock:
    """Shows the time that it was set to; who sleeps sets it."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class GatedMover:
    """Moves nothing: each transfer is under way until `finish` or `fail` names it."""

    def __init__(self, num_bytes: int = 10) -> None:
        self.num_bytes = num_bytes
        self._begun: SimpleQueue[Transfer] = SimpleQueue()
        self._ended: SimpleQueue[tuple[Transfer, Exception | None]] = SimpleQueue()
        self._verdicts: dict[Transfer, Exception | None] = {}
        self._changed = Condition()

    def move(self, transfer: Transfer) -> int:
        self._begun.put(transfer)
        with self._changed:
            assert self._changed.wait_for(lambda: transfer in self._verdicts, timeout=PATIENCE_S)
            verdict = self._verdicts.pop(transfer)
        if verdict is not None:
            raise verdict
        return self.num_bytes

    def done(self, transfer: Transfer, error: Exception | None) -> None:
        self._ended.put((transfer, error))

    def next_begun(self) -> Transfer:
        """The next transfer that a worker took up; Empty if none does."""
        return self._begun.get(timeout=PATIENCE_S)

    def none_begun(self) -> bool:
        """Whether all that began were asked for."""
        return self._begun.empty()

    def finish(self, transfer: Transfer, error: Exception | None = None) -> None:
        """End it, and return when that was told."""
        with self._changed:
            self._verdicts[transfer] = error
            self._changed.notify_all()
        assert self._ended.get(timeout=PATIENCE_S) == (transfer, error)
