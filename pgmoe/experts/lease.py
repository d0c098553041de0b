"""One layer's turn with the pool: what is lent, pinned, awaited and missing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pgmoe.experts.ffn import Weights
from pgmoe.layout import ExpertId

if TYPE_CHECKING:
    from pgmoe.experts.pool import ExpertPool


@dataclass(frozen=True)
class LentExpert:
    """One expert, ready to compute with until the next batch is asked for."""

    index: int
    weights: Weights
    copied: torch.Event | None = None
    """On an accelerator: the copy into its slot, which is to be waited for on the device."""


class Lease:
    """Orders what is missing at once, then lends each expert as it is ready. Made by ExpertPool.lease."""

    def __init__(self, pool: ExpertPool, layer: int, experts: Sequence[ExpertId], at_once: int) -> None:
        self._pool = pool
        self._layer = layer
        self._at_once = at_once
        ready, coming, missing = pool.take_stock(layer, experts)
        self._ready, self._awaited, self._missing = deque(ready), set(coming), deque(missing)
        self._lent: list[ExpertId] = []
        try:
            self._order()
        except BaseException:
            self.settle()
            raise

    def lend(self) -> Iterator[list[LentExpert]]:
        """Batches of experts, see ExpertPool.lease."""
        while self._ready or self._awaited or self._missing:
            while not self._ready:
                self._wait()
                self._order()
            # Where slots are short, each that is given back lets another expert be read meanwhile.
            most = 1 if self._missing else self._at_once
            self._lent = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            yield [self._pool.lend(expert) for expert in self._lent]
            self._take_back()
            self._order()

    def settle(self) -> None:
        """Unpin everything, and drop or await what is still under way for this layer."""
        self._take_back()
        while self._ready:
            self._pool.unpin(self._ready.popleft())
        self._awaited = {expert for expert in self._awaited if not self._pool.cancel(expert)}
        while self._awaited:
            self._awaited.discard(self._pool.wait(self._layer).transfer.expert)

    def _take_back(self) -> None:
        while self._lent:
            self._pool.unpin(self._lent.pop())

    def _order(self) -> None:
        while self._missing and self._pool.demand(self._missing[0]):
            self._awaited.add(self._missing.popleft())

    def _wait(self) -> None:
        """For the next arrival, which may be a guess for another layer: that one's slot can be had then."""
        arrival = self._pool.wait(self._layer)
        expert = arrival.transfer.expert
        if expert not in self._awaited:
            return
        self._awaited.remove(expert)  # only now: an interrupt while waiting leaves it under way
        if arrival.error is not None:
            raise arrival.error
        self._pool.pin(expert)
        self._ready.append(expert)


def lend_all(pool: ExpertPool, experts: Sequence[ExpertId], at_once: int) -> Iterator[list[LentExpert]]:
    """Batches of experts that are ready and stay so."""
    for at in range(0, len(experts), at_once):
        yield [pool.lend(expert) for expert in experts[at : at + at_once]]
