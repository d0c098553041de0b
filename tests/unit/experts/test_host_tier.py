from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pgmoe.errors import ExpertReadError
from pgmoe.experts.host_tier import HostTier, split_into_blocks
from pgmoe.experts.placement import every_expert, spread_evenly
from pgmoe.experts.policies import POLICIES, make_policy
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import PAGE, ExpertId, ExpertLayer
from tests.support.damage import Original
from tests.support.expert_files import NUM_EXPERTS, PoolParts, file_bytes, tensor_bytes, write_layers

Layers = tuple[ExpertLayer, ...]


def tier_of(layers: Layers, num_blobs: int, policy: str = "lru") -> HostTier:
    sizes = [layer.num_experts for layer in layers]
    return HostTier(num_blobs, layers[0].layout.slot_bytes, make_policy(policy, sizes), pinned=False)


def held(tier: HostTier, layers: Layers) -> list[ExpertId]:
    return [expert for expert in every_expert(layers) if expert in tier]


def holds_file_bytes(tier: HostTier, store: DiskStore, layers: Layers, expert: ExpertId) -> bool:
    layer = layers[expert.layer]
    views = layer.layout.views(tier.blob(expert), store.starts(expert))
    return tensor_bytes(views) == file_bytes(layer, expert.expert)


def test_every_expert_is_copied_and_is_where_the_books_say(layers: Layers, store: DiskStore) -> None:
    tier = tier_of(layers, 12)
    tier.fill(every_expert(layers), store, num_readers=3)
    assert held(tier, layers) == every_expert(layers)
    assert len(tier) == tier.num_blobs == 12
    assert all(holds_file_bytes(tier, store, layers, expert) for expert in every_expert(layers))
    tier.check_integrity()


def test_only_the_blobs_take_memory_and_some_may_stay_free(layers: Layers, store: DiskStore) -> None:
    tier = tier_of(layers, 5)
    experts = [ExpertId(0, 4), ExpertId(1, 0), ExpertId(1, 5)]
    tier.fill(experts, store, num_readers=2)
    assert tier.nbytes == 5 * layers[0].layout.slot_bytes
    assert held(tier, layers) == experts
    assert (len(tier), tier.num_blobs) == (3, 5)


def test_experts_of_several_blocks_do_not_overlap(tmp_path: Path) -> None:
    layers = write_layers(tmp_path, num_layers=3, num_experts=50)
    every = every_expert(layers)
    assert len(split_into_blocks(len(every), layers[0].layout.slot_bytes)) > 3
    tier, store = tier_of(layers, len(every)), DiskStore(layers)
    tier.fill(every, store, num_readers=2)
    places = sorted(tier.blob(expert).data_ptr() for expert in every)
    size = layers[0].layout.slot_bytes
    assert all(later - earlier >= size for earlier, later in itertools.pairwise(places))
    assert all(place % PAGE == 0 for place in places)
    assert all(holds_file_bytes(tier, store, layers, every[i]) for i in range(0, len(every), 7))
    store.close()


@given(st.integers(1, 2000), st.integers(2, 100_000))
def test_blocks_hold_all_slots_and_waste_little_of_their_powers_of_two(num_slots: int, pages: int) -> None:
    """torch's pinned allocator gives whole powers of two, and alignment takes a page of each block."""
    blocks = split_into_blocks(num_slots, pages * PAGE)
    assert sum(blocks) == num_slots
    asked = [block * pages * PAGE + PAGE for block in blocks]
    wasted = sum((1 << (size - 1).bit_length()) - size for size in asked)
    assert wasted <= (num_slots / 30 + 2 * len(set(blocks))) * pages * PAGE


def test_progress_is_told_every_byte_in_the_callers_thread(layers: Layers, store: DiskStore) -> None:
    told, threads = [], set()

    def progress(num_bytes: int) -> None:
        threads.add(threading.current_thread())
        told.append(num_bytes)

    tier_of(layers, 7).fill(spread_evenly(layers, 7), store, num_readers=4, progress=progress)
    assert told == [layers[0].layout.weight_bytes] * 7
    assert threads == {threading.current_thread()}


def test_an_expert_that_cannot_be_read_ends_the_copy_with_its_name(layers: Layers, store: DiskStore) -> None:
    os.truncate(layers[1].extents[0][0].path, 30_000)
    with pytest.raises(ExpertReadError, match=r"expert \d of layers\.1\.experts: .*layer-1\.bin"):
        tier_of(layers, 12).fill(every_expert(layers), store, num_readers=3)


def test_what_host_memory_holds_is_not_read_again(layers: Layers, store: DiskStore) -> None:
    parts = PoolParts(layers, store, num_slots=2, num_host_blobs=4)
    assert parts.host is not None
    parts.host.fill([ExpertId(0, 0), ExpertId(0, 1)], store, num_readers=1)
    size, slot_bytes = layers[0].layout.weight_bytes, layers[0].layout.slot_bytes
    parts.take(0, [0, 1])
    assert parts.stats.transfer_bytes == {"host_to_device": 2 * slot_bytes}
    parts.take(0, [2, 3])
    parts.take(0, [0, 1])  # their slots are lost, their blobs are not
    assert parts.stats.transfer_bytes == {"disk_to_host": 2 * size, "host_to_device": 6 * slot_bytes}
    for layer in (1, 0, 1):
        assert sorted(parts.take(layer, range(NUM_EXPERTS))) == list(range(NUM_EXPERTS))
    parts.pool.close()


def test_a_file_cut_short_fails_only_experts_that_are_on_disk_alone(layers: Layers, store: DiskStore) -> None:
    parts = PoolParts(layers, store, num_slots=3, num_host_blobs=3)
    assert parts.host is not None
    parts.host.fill([ExpertId(1, 5)], store, num_readers=1)
    path = Path(layers[1].extents[0][0].path)
    whole = Original(path)
    os.truncate(path, 1000)
    for _ in range(3):  # no blob is lost by it
        with pytest.raises(ExpertReadError, match=r"expert 4 of layers\.1"):
            parts.take(1, [4])
    with parts.pool.lease(1, [5]) as lent:
        assert [expert.index for (expert,) in lent] == [5]
    whole.put_back()
    assert sorted(parts.take(1, [4, 5])) == [4, 5]
    parts.resident()
    parts.pool.close()


class TierAgainstPlainBooks(RuleBasedStateMachine):
    """Transfers that begin and end in any order, beside sets that say what must be held."""

    make: Callable[[int], HostTier]

    @initialize(num_blobs=st.integers(1, 4))
    def start(self, num_blobs: int) -> None:
        self.tier, self.num_blobs = type(self).make(num_blobs), num_blobs
        self.held: set[ExpertId] = set()
        self.moving: dict[ExpertId, int] = {}
        """With the address of its blob."""

    @rule(layer=st.integers(0, 1), index=st.integers(0, NUM_EXPERTS - 1))
    def begin(self, layer: int, index: int) -> None:
        expert = ExpertId(layer, index)
        if expert in self.moving:
            return
        new = set(self.moving) - self.held
        idle = self.held - set(self.moving)
        full = len(self.held) + len(new) == self.num_blobs
        before = {e for e in self.held if e in self.tier}
        assert self.tier.has_room(expert) == (expert in self.held or not full or bool(idle))
        assert before == {e for e in self.held if e in self.tier}  # asking changes nothing
        if not self.tier.has_room(expert):
            return
        blob, there = self.tier.reserve(expert)
        assert there == (expert in self.held)
        lost = {e for e in self.held if e not in self.tier}
        assert lost <= idle
        assert len(lost) == (full and not there)
        self.held -= lost
        assert blob.memory.data_ptr() not in self.moving.values()
        self.moving[expert] = blob.memory.data_ptr()

    @rule(which=st.integers(0, 9), arrived=st.booleans())
    def end(self, which: int, arrived: bool) -> None:
        if not self.moving:
            return
        expert = sorted(self.moving)[which % len(self.moving)]
        place = self.moving.pop(expert)
        self.tier.release(expert, arrived=arrived)
        if arrived:
            self.held.add(expert)
        if expert in self.held:  # what lay there lies there, whatever became of the copy out of it
            assert self.tier.blob(expert).data_ptr() == place

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "tier"):
            self.tier.check_integrity()
            assert self.tier.in_use == set(self.moving)
            assert len(self.tier) == len(self.held)
            assert all(expert in self.tier for expert in self.held)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_order_of_transfers_upsets_the_tier(layers: Layers, policy: str) -> None:
    machine = type(
        "Machine", (TierAgainstPlainBooks,), {"make": staticmethod(lambda n: tier_of(layers, n, policy))}
    )
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )


def test_copies_are_a_use(layers: Layers, store: DiskStore) -> None:
    tier = tier_of(layers, 2)
    first, second, third = (ExpertId(0, e) for e in range(3))
    tier.fill([first, second], store, num_readers=1)
    tier.reserve(first)
    tier.release(first, arrived=True)
    tier.reserve(third)
    assert first in tier
    assert second not in tier
