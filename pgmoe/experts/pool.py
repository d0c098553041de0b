"""The experts of a whole model in a limited number of slots, lent to one MoE layer at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from pgmoe.experts.cache import ExpertCache, SlotState
from pgmoe.experts.link import Arrival, Link
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.metrics.stats import ExpertStats

Weights = dict[str, Tensor]
"""An expert's tensors by name, as views of its slot."""


@dataclass(frozen=True)
class LentExpert:
    """One expert, ready to compute with until the next batch is asked for."""

    index: int
    weights: Weights


class ExpertPool:
    """Lends experts: those in slots at once, the others as they arrive. For the computing thread alone."""

    def __init__(
        self,
        layers: tuple[ExpertLayer, ...],
        store: ExpertStore,
        arena: SlotArena,
        cache: ExpertCache,
        link: Link,
        stats: ExpertStats,
    ) -> None:
        self._layers = layers
        self._store = store
        self._arena = arena
        self._cache = cache
        self._link = link
        self._stats = stats
        self._lendable: dict[ExpertId, LentExpert] = {}
        stats.slots = arena.num_slots

    @contextmanager
    def lease(
        self, layer: int, experts: Sequence[int], at_once: int = 1
    ) -> Iterator[Iterator[list[LentExpert]]]:
        """Lend these distinct experts of one layer, each exactly once, as they are ready.

        They come in batches of 1 to `at_once`: resident ones first, in the order given, while the missing
        are read; then each as it arrives. Works with fewer slots than experts: slots of one batch are given
        on when the next is asked for. The iterator raises ExpertReadError if an expert's bytes cannot be
        had. Nothing stays pinned or in flight after the `with` block.
        """
        lease = _Lease(self, [ExpertId(layer, e) for e in experts], at_once)
        try:
            yield lease.lend()
        finally:
            lease.settle()
            self._stats.resident = len(self._cache)

    def close(self) -> None:
        """Stop reading and give back files."""
        self._link.close()
        self._store.close()

    # What a lease does to the pool, step by step.

    def split(self, experts: Sequence[ExpertId]) -> tuple[list[ExpertId], list[ExpertId]]:
        """(ready and now pinned, missing); counted as hits and misses. No other lease may be under way."""
        ready: list[ExpertId] = []
        missing: list[ExpertId] = []
        for expert in experts:
            state = self._cache.state(expert)
            assert state is not SlotState.IN_FLIGHT, expert
            (ready if state is SlotState.READY else missing).append(expert)
        for expert in ready:
            self._cache.pin(expert)
        if experts:
            self._stats.hits[experts[0].layer] += len(ready)
            self._stats.misses[experts[0].layer] += len(missing)
        return ready, missing

    def order(self, expert: ExpertId, arrivals: SimpleQueue[Arrival]) -> bool:
        """Start fetching a missing expert; False if no slot can be had now."""
        reserved = self._cache.begin(expert)
        if reserved is None:
            return False
        slot, evicted = reserved
        if evicted is not None:
            del self._lendable[evicted]
            self._stats.evictions[evicted.layer] += 1
        try:
            self._link.fetch(expert, self._arena.slot(slot), arrivals)
        except BaseException:  # no arrival will follow
            self._cache.abandon(expert)
            raise
        return True

    def receive(self, arrival: Arrival) -> None:
        """Book an arrival; a failed one leaves its slot free."""
        expert = arrival.expert
        if arrival.error is not None:
            self._cache.abandon(expert)
            return
        slot = self._arena.slot(self._cache.slot_of(expert))
        if arrival.event is not None:
            torch.get_device_module(slot.device).current_stream(slot.device).wait_event(arrival.event)
        weights = self._layers[expert.layer].layout.views(slot, self._store.starts(expert))
        self._lendable[expert] = LentExpert(expert.expert, weights)
        self._cache.finish(expert)
        self._stats.transfer_bytes[f"{arrival.tier}_to_device"] += arrival.num_bytes
        self._stats.transfer_s.append(arrival.seconds)

    def lend(self, expert: ExpertId) -> LentExpert:
        """A pinned expert's weights."""
        return self._lendable[expert]

    def pin(self, expert: ExpertId) -> None:
        """Keep it in its slot."""
        self._cache.pin(expert)

    def unpin(self, expert: ExpertId) -> None:
        """It may go."""
        self._cache.unpin(expert)

    def stalled(self, seconds: float) -> None:
        """Count time that compute waited."""
        self._stats.stall_s += seconds


class _Lease:
    """One layer's turn: what is still pinned, missing and under way."""

    def __init__(self, pool: ExpertPool, experts: Sequence[ExpertId], at_once: int) -> None:
        self._pool = pool
        self._at_once = at_once
        ready, missing = pool.split(experts)
        self._ready, self._missing = deque(ready), deque(missing)
        self._lent: list[ExpertId] = []
        self._arrivals: SimpleQueue[Arrival] = SimpleQueue()
        self._in_flight = 0

    def lend(self) -> Iterator[list[LentExpert]]:
        self._order()
        while self._ready or self._in_flight:
            if not self._ready:
                self._wait()
            self._lent = [self._ready.popleft() for _ in range(min(self._at_once, len(self._ready)))]
            yield [self._pool.lend(expert) for expert in self._lent]
            self._take_back()
            self._order()
        assert not self._missing, self._missing

    def settle(self) -> None:
        """Wait for what is still under way and unpin everything."""
        while self._in_flight:
            self._pool.receive(self._next_arrival())
        self._take_back()
        while self._ready:
            self._pool.unpin(self._ready.popleft())

    def _take_back(self) -> None:
        while self._lent:
            self._pool.unpin(self._lent.pop())

    def _order(self) -> None:
        while self._missing and self._pool.order(self._missing[0], self._arrivals):
            self._missing.popleft()
            self._in_flight += 1

    def _wait(self) -> None:
        begin = time.perf_counter()
        arrival = self._next_arrival()
        self._pool.stalled(time.perf_counter() - begin)
        self._pool.receive(arrival)
        if arrival.error is not None:
            raise arrival.error
        self._pool.pin(arrival.expert)
        self._ready.append(arrival.expert)

    def _next_arrival(self) -> Arrival:
        arrival = self._arrivals.get()
        self._in_flight -= 1  # only now: an interrupt while waiting leaves it under way
        return arrival
