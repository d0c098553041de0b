"""The experts of a whole model in a limited number of slots, lent to one MoE layer at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from pgmoe.experts.cache import ExpertCache, SlotState
from pgmoe.experts.expander import Expander
from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.lease import Lease, LentExpert, lend_all
from pgmoe.experts.links.base import Arrival, Link, Transfer, Urgency
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.warmth import Warmth
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.metrics.stats import ExpertStats


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
        host: HostTier | None = None,
    ) -> None:
        """`host`: the tier that the link passes through, if it does."""
        self._layers = layers
        self._store = store
        self._arena = arena
        self._expander = Expander(layers, arena.device)
        self._cache = cache
        self._link = link
        self._host = host
        self._stats = stats
        self._lendable: dict[ExpertId, LentExpert] = {}
        self._all_fit = arena.num_slots >= sum(layer.num_experts for layer in layers)
        self._under_way: dict[ExpertId, Transfer] = {}
        self._unproven: set[ExpertId] = set()
        """Ordered before they were asked for, and not used yet."""
        self._warmth = Warmth()
        self._leased = False
        self.missed: frozenset[int] = frozenset()
        """Experts that the last lease did not find ready."""
        stats.slots = arena.num_slots

    @contextmanager
    def lease(
        self, layer: int, experts: Sequence[int], at_once: int = 1
    ) -> Iterator[Iterator[list[LentExpert]]]:
        """Lend these distinct experts of one layer, each exactly once, as they are ready.

        In batches of 1 to `at_once`: resident ones first, in order, while the missing are read; then each as
        it arrives. A batch's slots are given on when the next is asked for. Raises ExpertReadError if an
        expert's bytes cannot be had. Nothing stays pinned, nor demanded, after it. One lease at a time.
        """
        assert not self._leased, layer
        self._leased = True
        try:
            wanted = [ExpertId(layer, e) for e in experts]
            if self.take_at_once(layer, wanted):
                yield lend_all(self, wanted, at_once)
                return
            lease = Lease(self, layer, wanted, at_once)
            try:
                yield lease.lend()
            finally:
                lease.settle()
        finally:
            self._leased = False
            self._stats.resident = len(self._cache)

    def prefetch(self, layer: int, experts: Iterable[int], *, exact: bool, max_bytes: float) -> int:
        """Order those of these experts of a coming layer that are missing, first ones first -> bytes ordered.

        Stops before more than `max_bytes`, or where no slot can be had: a guess takes free ones and cold
        ones, an exact selection any that is not pinned or expected. Those named are spared by other guesses.
        """
        wanted = [ExpertId(layer, e) for e in experts]
        self._warmth.expect(layer, wanted)
        urgency = Urgency.EXACT if exact else Urgency.GUESS
        num_bytes, ordered = self._layers[layer].layout.weight_bytes, 0
        for expert in filter(self.is_missing, wanted):
            if ordered + num_bytes > max_bytes or not self._order(expert, urgency):
                break
            self._unproven.add(expert)
            ordered += num_bytes
        return ordered

    @property
    def guessed_bytes_under_way(self) -> int:
        """Of experts ordered on a guess that have not arrived and are not asked for yet."""
        guesses = [e for e, t in self._under_way.items() if t.urgency is Urgency.GUESS]
        return sum(self._layers[e.layer].layout.weight_bytes for e in guesses)

    @property
    def held(self) -> Collection[ExpertId]:
        """Experts in a slot or on their way to one; a live view."""
        return self._cache.held

    def num_missing(self, layer: int) -> int:
        """How many of this layer's experts are missing."""
        return sum(self.is_missing(ExpertId(layer, e)) for e in range(self._layers[layer].num_experts))

    def is_missing(self, expert: ExpertId) -> bool:
        """Neither in a slot nor on its way to one."""
        return self._cache.state(expert) is SlotState.MISSING

    def close(self) -> None:
        """Stop reading and give back files."""
        self._link.close()
        self._store.close()

    def check_integrity(self) -> None:
        """Assert that the books of cache, host tier and link agree; for tests."""
        self._cache.check_integrity()
        every = [ExpertId(i, e) for i, layer in enumerate(self._layers) for e in range(layer.num_experts)]
        by_state = {s: {e for e in every if self._cache.state(e) is s} for s in SlotState}
        assert by_state[SlotState.IN_FLIGHT] == set(self._under_way)
        assert by_state[SlotState.READY] == set(self._lendable)
        assert not self._unproven & by_state[SlotState.MISSING]
        assert all(e in self._unproven for e, t in self._under_way.items() if t.urgency is not Urgency.DEMAND)
        if self._host is not None:
            self._host.check_integrity()
            assert self._host.in_use == set(self._under_way)

    # What a lease does to the pool, step by step.

    def take_stock(
        self, layer: int, experts: Sequence[ExpertId]
    ) -> tuple[list[ExpertId], list[ExpertId], list[ExpertId]]:
        """(ready and now pinned, on their way and now urgent, missing), each in the order given.

        Counted: the ready as hits, the others as misses. Guesses for this layer that were wrong and still
        wait are dropped.
        """
        self._warmth.next_turn(layer)
        self._book(self._link.arrived())
        chosen = set(experts)
        for expert in [e for e in self._under_way if e.layer == layer and e not in chosen]:
            self.cancel(expert)
        found: dict[SlotState, list[ExpertId]] = {state: [] for state in SlotState}
        for expert in experts:
            if self._store.is_corrupt(expert):
                self._forget(expert)
            found[self._cache.state(expert)].append(expert)
        ready, coming, missing = (found[s] for s in (SlotState.READY, SlotState.IN_FLIGHT, SlotState.MISSING))
        for expert in ready:
            self._count_prefetch(expert, "useful")
            self.pin(expert)
        for expert in coming:
            self._count_prefetch(expert, "late")
            self._link.promote(self._under_way[expert], Urgency.DEMAND)
        self.missed = frozenset(e.expert for e in (*coming, *missing))
        if experts:
            self._stats.hits[layer] += len(ready)
            self._stats.misses[layer] += len(coming) + len(missing)
        return ready, coming, missing

    def take_at_once(self, layer: int, experts: Sequence[ExpertId]) -> bool:
        """True, and these count as hits, if they are ready and cannot be pushed out: each expert has a slot.

        False, and nothing is done, if not, or if one has turned out to be corrupt.
        """
        ready = all(map(self._lendable.__contains__, experts)) and not self._under_way
        if not (self._all_fit and ready) or any(map(self._store.is_corrupt, experts)):
            return False
        for expert in self._unproven.intersection(experts):
            self._count_prefetch(expert, "useful")
        self._stats.hits[layer] += len(experts)
        self.missed = frozenset()
        return True

    def demand(self, expert: ExpertId) -> bool:
        """Start fetching a missing expert; False if no slot can be had before something arrives."""
        return self._order(expert, Urgency.DEMAND) or (
            self._drop_a_guess() and self._order(expert, Urgency.DEMAND)
        )

    def cancel(self, expert: ExpertId) -> bool:
        """Drop a transfer of which nothing has moved; whether it could be."""
        transfer = self._under_way[expert]
        if not self._link.cancel(transfer):
            return False
        self._end(transfer, arrived=False, in_host=False)
        return True

    def wait(self, layer: int) -> Arrival:
        """The next arrival, booked; the time until then counts as this layer's stall."""
        begin = time.perf_counter()
        arrival = self._link.wait()
        self._stats.layer_stall_s[layer] += time.perf_counter() - begin
        self._book([arrival])
        return arrival

    def lend(self, expert: ExpertId) -> LentExpert:
        """The weights of an expert that stays. The device waits for their copy, and for no other."""
        lent = self._lendable[expert]
        if lent.copied is not None:
            device = self._arena.device
            torch.get_device_module(device).current_stream(device).wait_event(lent.copied)
        return lent

    def pin(self, expert: ExpertId) -> None:
        """Keep it in its slot; a use."""
        self._cache.pin(expert)
        self._warmth.used(expert)

    def unpin(self, expert: ExpertId) -> None:
        """It may go."""
        self._cache.unpin(expert)

    def _order(self, expert: ExpertId, urgency: Urgency) -> bool:
        """Reserve what the expert needs on each tier and order it; False, changing nothing, if not."""
        if self._host is not None and not self._host.has_room(expert):
            return False
        place = self._place(expert, urgency)
        if place is None:
            return False
        blob, from_disk = None, True
        if self._host is not None:
            blob, in_host = self._host.reserve(expert)
            from_disk = not in_host
        reason = "demand" if urgency is Urgency.DEMAND else "prefetch"
        transfer = Transfer(expert, self._arena.slot(place), urgency, reason, blob, from_disk)
        self._under_way[expert] = transfer
        try:
            self._link.order(transfer)
        except BaseException:  # no arrival will follow
            self._end(transfer, arrived=False, in_host=False)
            raise
        return True

    def _place(self, expert: ExpertId, urgency: Urgency) -> int | None:
        """Reserve a slot. A guess pushes out cold experts alone; who is expected goes if no other may."""
        may_go = self._warmth.is_cold if urgency is Urgency.GUESS else None
        reserved = self._cache.begin(expert, self._warmth.expected, may_go)
        if reserved is None and urgency is Urgency.DEMAND:
            reserved = self._cache.begin(expert)
        if reserved is None:
            return None
        slot, evicted = reserved
        if evicted is not None:
            del self._lendable[evicted]
            self._count_prefetch(evicted, "wasted")
            self._stats.evictions[evicted.layer] += 1
        return slot

    def _forget(self, expert: ExpertId) -> None:
        """Its bytes have turned out to be wrong: no copy stays that would be used again."""
        if self._cache.state(expert) is SlotState.READY:
            self._cache.drop(expert)
            del self._lendable[expert]
            self._unproven.discard(expert)
        if self._host is not None:
            self._host.forget(expert)

    def _drop_a_guess(self) -> bool:
        """Give up the last ordered guess of which nothing has moved yet, if there is one."""
        guesses = [e for e, t in self._under_way.items() if t.urgency is not Urgency.DEMAND]
        return any(self.cancel(expert) for expert in reversed(guesses))

    def _book(self, arrivals: Iterable[Arrival]) -> None:
        """What arrived is ready; what failed leaves its slot free and has to be ordered again."""
        for arrival in arrivals:
            expert = arrival.transfer.expert
            self._end(arrival.transfer, arrived=arrival.error is None, in_host=arrival.in_host)
            if arrival.error is not None:
                continue
            layer = self._layers[expert.layer]
            stored = layer.layout.views(arrival.blob, self._store.starts(expert))
            weights = self._expander.weights(layer, stored)
            self._lendable[expert] = LentExpert(expert.expert, weights, arrival.event)

    def _end(self, transfer: Transfer, *, arrived: bool, in_host: bool) -> None:
        """A transfer is over or dropped: the books of both tiers."""
        expert = transfer.expert
        del self._under_way[expert]
        if self._host is not None:
            self._host.release(expert, arrived=in_host)
        if arrived:
            self._cache.finish(expert)
        else:
            self._cache.abandon(expert)
            self._unproven.discard(expert)

    def _count_prefetch(self, expert: ExpertId, outcome: str) -> None:
        if expert in self._unproven:
            self._unproven.remove(expert)
            self._stats.prefetch_bytes[outcome] += self._layers[expert.layer].layout.weight_bytes
