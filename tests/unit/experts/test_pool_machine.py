"""Leases, guesses, failures and reads that end in any order: every policy, with and without host memory."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pgmoe.errors import ExpertReadError
from pgmoe.experts.cache import SlotState
from pgmoe.experts.lease import LentExpert
from pgmoe.experts.links.base import Transfer
from pgmoe.experts.policies import POLICIES
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId, ExpertLayer
from tests.support.expert_files import NUM_EXPERTS, GatedStore, PoolParts, file_bytes, tensor_bytes
from tests.support.transfers import PATIENCE_S

NUM_LAYERS = 2
layer_numbers = st.integers(0, NUM_LAYERS - 1)
some_experts = st.lists(st.integers(0, NUM_EXPERTS - 1), unique=True)


class ReadsLetGo(GatedStore):
    """Reads wait until they are let go, or all are; those of `bad` experts fail."""

    def __init__(self, store: ExpertStore) -> None:
        super().__init__(store)
        self.changed = threading.Condition()
        self.all_free = False
        self.waiting: list[ExpertId] = []
        self.bad: frozenset[ExpertId] = frozenset()
        self.failed: set[ExpertId] = set()
        self.reads: Counter[ExpertId] = Counter()

    def enter(self, expert: ExpertId) -> None:
        with self.changed:
            self.reads[expert] += 1
            assert expert not in self.waiting, expert  # two reads of one expert at once
            self.waiting.append(expert)
            assert self.changed.wait_for(lambda: self.all_free or expert not in self.waiting, PATIENCE_S)
            if expert in self.waiting:
                self.waiting.remove(expert)
            if expert in self.bad:
                self.failed.add(expert)
                raise ExpertReadError(f"{tuple(expert)}")

    def let_go(self, which: int) -> None:
        with self.changed:
            if self.waiting:
                self.waiting.pop(which % len(self.waiting))
                self.changed.notify_all()

    def set_free(self, free: bool) -> None:
        with self.changed:
            self.all_free = free
            self.changed.notify_all()


class PoolUnderAnything(RuleBasedStateMachine):
    """The pool beside what it was asked for."""

    layers: tuple[ExpertLayer, ...]
    disk: DiskStore
    policy: str

    @initialize(
        num_slots=st.integers(1, 13), num_host_blobs=st.integers(0, 13), num_readers=st.integers(1, 3)
    )
    def start(self, num_slots: int, num_host_blobs: int, num_readers: int) -> None:
        self.store = ReadsLetGo(self.disk)
        self.parts = PoolParts(
            self.layers, self.store, num_slots, num_readers, self.policy, num_host_blobs=num_host_blobs
        )
        self.size = self.layers[0].layout.weight_bytes
        self.expected: dict[int, set[ExpertId]] = {}
        self.used: set[ExpertId] = set()
        """In the turn that is, or was the last."""
        self.pinned: set[ExpertId] = set()
        self.held: set[ExpertId] = set()
        """Were ready when the lease began, and are not lent yet."""
        self.ordered: Counter[ExpertId] = Counter()
        order = self.parts.link.order

        def counted(transfer: Transfer) -> None:
            self.ordered[transfer.expert] += 1
            order(transfer)

        self.parts.link.order = counted  # type: ignore[method-assign]

    @rule(layer=layer_numbers, experts=some_experts, exact=st.booleans(), limit=st.integers(0, 8))
    def prefetch(self, layer: int, experts: list[int], exact: bool, limit: int) -> None:
        ready, coming = self._ready(), self.parts.in_state(SlotState.IN_FLIGHT)
        self.expected[layer] = {ExpertId(layer, e) for e in experts}
        max_bytes = self.size * limit + limit % self.size
        done = self.parts.pool.prefetch(layer, experts, exact=exact, max_bytes=max_bytes)
        evicted, started = ready - self._ready(), self.parts.in_state(SlotState.IN_FLIGHT) - coming
        assert done == self.size * len(started) <= max_bytes
        assert started <= self.expected[layer]
        assert coming <= self.parts.in_state(SlotState.IN_FLIGHT)
        assert not evicted & set().union(*self.expected.values())
        assert not evicted & (self.pinned if exact else self.pinned | self.used)

    @rule(which=st.integers(0, 20))
    def a_read_ends(self, which: int) -> None:
        self.store.let_go(which)

    @rule(
        layer=layer_numbers,
        experts=some_experts,
        at_once=st.integers(1, 7),
        taken=st.integers(0, 8),
        bad=st.sets(st.integers(0, NUM_EXPERTS - 1), max_size=2),
        guessed=some_experts,
        exact=st.booleans(),
    )
    def lease(
        self,
        layer: int,
        experts: list[int],
        at_once: int,
        taken: int,
        bad: set[int],
        guessed: list[int],
        exact: bool,
    ) -> None:
        chosen = {ExpertId(layer, e) for e in experts}
        self.store.bad = frozenset(ExpertId(layer, e) for e in bad)
        self.expected.pop(layer, None)
        self.store.set_free(True)
        lent: list[int] = []
        told: str | None = None
        before = self.parts.stats.num_hits + self.parts.stats.num_misses
        try:
            with self.parts.pool.lease(layer, experts, at_once) as batches:
                self.used = self.pinned = self.held = chosen & self._ready()
                self._guess_amid(layer, guessed, exact)
                for batch in batches:
                    assert 1 <= len(batch) <= at_once
                    lent += self._check(layer, batch)
                    self._guess_amid(layer, guessed, exact)
                    if len(lent) > taken:
                        break
        except ExpertReadError as error:
            told = str(error)
        finally:
            self.pinned = set()
            self.store.set_free(False)
        if told is None:
            assert len(lent) > taken or sorted(lent) == sorted(experts)
        else:  # perhaps of a read that began before this lease
            assert told in {str(tuple(e)) for e in chosen & self.store.failed}
        assert len(set(lent)) == len(lent)
        assert self.parts.stats.num_hits + self.parts.stats.num_misses == before + len(experts)
        assert not chosen & self.parts.in_state(SlotState.IN_FLIGHT)

    def _check(self, layer: int, batch: list[LentExpert]) -> list[int]:
        """The batch's numbers; each has the file's bytes, and is ready."""
        experts = {ExpertId(layer, expert.index) for expert in batch}
        self.held = self.held - experts
        self.pinned = experts | self.held
        self.used = self.used | experts
        assert self.pinned <= self._ready()
        for expert in batch:
            assert tensor_bytes(expert.weights) == file_bytes(self.layers[layer], expert.index)
        return [expert.index for expert in batch]

    def _guess_amid(self, layer: int, experts: list[int], exact: bool) -> None:
        """As the prefetcher does: once a layer's experts are ordered."""
        self.prefetch(1 - layer, experts, exact, len(experts))
        self.books_agree()

    def _ready(self) -> set[ExpertId]:
        return self.parts.in_state(SlotState.READY)

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "parts"):
            return
        self.parts.pool.check_integrity()
        stats = self.parts.stats
        assert all(n % self.size == 0 for n in stats.prefetch_bytes.values())
        assert all(self.store.reads[e] <= n for e, n in self.ordered.items())
        assert set(self.store.reads) <= set(self.ordered)

    def teardown(self) -> None:
        if not hasattr(self, "parts"):
            return
        self.store.bad = frozenset()
        self.store.set_free(True)
        for layer in range(NUM_LAYERS):
            try:  # a guess that failed meanwhile may still be told to whoever asks for it
                self.parts.take(layer, range(NUM_EXPERTS))
            except ExpertReadError:
                self.parts.take(layer, range(NUM_EXPERTS))
        self.parts.pool.close()
        self.parts.pool.check_integrity()
        assert self.parts.stats.resident == len(self._ready())
        assert self.parts.stats.num_bytes <= 2 * sum(self.ordered.values()) * self.parts.arena.slot_bytes


@pytest.mark.parametrize("policy", POLICIES)
def test_no_order_of_events_upsets_the_pool(
    layers: tuple[ExpertLayer, ...], store: DiskStore, policy: str
) -> None:
    machine = type("Machine", (PoolUnderAnything,), {"layers": layers, "disk": store, "policy": policy})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )
