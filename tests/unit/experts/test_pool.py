from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pgmoe.errors import ExpertReadError
from pgmoe.experts.cache import SlotState
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId, ExpertLayer
from tests.support.damage import Original
from tests.support.expert_files import GatedStore, PoolParts


def ids(layer: int, experts: list[int]) -> set[ExpertId]:
    return {ExpertId(layer, e) for e in experts}


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 6, 12])
def test_each_expert_is_lent_once_however_few_slots_there_are(
    layers: tuple[ExpertLayer, ...], store: DiskStore, num_slots: int
) -> None:
    parts = PoolParts(layers, store, num_slots)
    for layer, experts in [
        (0, [0, 1, 2, 3, 4, 5]),
        (1, [5, 0, 3]),
        (0, [2]),
        (1, []),
        (0, [5, 4, 3, 2, 1, 0]),
    ]:
        assert sorted(parts.take(layer, experts)) == sorted(experts)
        assert len(parts.resident()) <= num_slots
    parts.pool.close()


def test_resident_experts_come_first_while_the_others_are_still_read(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    gate = threading.Event()

    class Slow(GatedStore):
        def enter(self, expert: ExpertId) -> None:
            assert expert.expert < 2 or gate.wait(timeout=60)

    parts = PoolParts(layers, Slow(store), num_slots=4)
    parts.take(0, [0, 1])
    with parts.pool.lease(0, [3, 1, 2, 0]) as lent:
        first = [next(lent)[0].index, next(lent)[0].index]
        gate.set()
        rest = [expert.index for (expert,) in lent]
    assert (sorted(first), sorted(rest)) == ([0, 1], [2, 3])
    parts.pool.close()


def test_resident_experts_are_lent_together_and_the_others_as_they_come(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    parts = PoolParts(layers, store, num_slots=5)
    parts.take(0, [1, 4, 2])
    with parts.pool.lease(0, [5, 4, 1, 0, 2], at_once=5) as lent:
        batches = [[expert.index for expert in batch] for batch in lent]
    assert batches[0] == [4, 1, 2]
    assert sorted(batches[1:]) == [[0], [5]]
    with parts.pool.lease(0, [0, 1, 2, 4, 5], at_once=2) as lent:
        assert [[expert.index for expert in batch] for batch in lent] == [[0, 1], [2, 4], [5]]
    parts.pool.close()


@pytest.mark.parametrize("roomy", [True, False])
def test_where_each_expert_has_a_slot_those_that_are_there_are_lent_without_books(
    layers: tuple[ExpertLayer, ...], store: DiskStore, roomy: bool
) -> None:
    num_experts = sum(layer.num_experts for layer in layers)
    parts = PoolParts(layers, store, num_slots=num_experts if roomy else num_experts - 1)
    parts.take(0, [1, 4, 2])
    with parts.pool.lease(0, [4, 1], at_once=2) as lent:
        assert [[expert.index for expert in batch] for batch in lent] == [[4, 1]]
    with parts.pool.lease(0, [4, 1]) as lent:
        assert next(lent)[0].index == 4
        assert parts.cache.busy == (set() if roomy else {ExpertId(0, 4), ExpertId(0, 1)})
        assert [expert.index for batch in lent for expert in batch] == [1]
    assert (parts.stats.hits[0], parts.stats.misses[0]) == (4, 3)
    assert parts.pool.missed == frozenset()
    parts.pool.close()


def test_where_each_expert_has_a_slot_a_guess_that_came_in_time_counts_as_useful(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    parts = PoolParts(layers, store, num_slots=sum(layer.num_experts for layer in layers))
    parts.pool.prefetch(0, [3], exact=False, max_bytes=1e9)
    while parts.in_state(SlotState.IN_FLIGHT):  # its arrival is booked when another layer's turn comes
        parts.take(1, [0])
    for _ in range(2):
        parts.take(0, [3])
    assert parts.stats.prefetch_bytes["useful"] == layers[0].layout.weight_bytes
    assert (parts.stats.hits[0], parts.stats.misses[0]) == (2, 0)
    parts.pool.check_integrity()
    parts.pool.close()


def test_missing_experts_are_read_by_several_readers_at_once(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    together = threading.Barrier(3, timeout=60)  # broken, and so an error, if fewer than three read at once

    class Meeting(GatedStore):
        def enter(self, expert: ExpertId) -> None:
            together.wait()

    parts = PoolParts(layers, Meeting(store), num_slots=6, num_readers=3)
    assert sorted(parts.take(1, [0, 1, 2, 3, 4, 5])) == [0, 1, 2, 3, 4, 5]
    parts.pool.close()


def test_hits_misses_evictions_and_bytes_are_counted(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    parts = PoolParts(layers, store, num_slots=4)
    stats, size = parts.stats, layers[0].layout.weight_bytes
    assert (stats.slots, stats.resident) == (4, 0)
    parts.take(0, [0, 1, 2])
    assert (dict(stats.hits), dict(stats.misses), stats.resident) == ({0: 0}, {0: 3}, 3)
    parts.take(0, [1, 2, 3])
    assert (stats.hits[0], stats.misses[0], stats.evictions.total()) == (2, 4, 0)
    parts.take(1, [0, 1])  # 0 was used longest ago; of the others 3 came last
    assert (stats.misses[1], dict(stats.evictions), stats.resident) == (2, {0: 2}, 4)
    assert dict(stats.transfer_bytes) == {"disk_to_device": 6 * size}
    assert len(stats.links["disk_to_device"].transfer_s) == 6
    assert stats.stall_s > 0
    assert ExpertId(0, 0) not in parts.resident()
    parts.pool.close()


def test_an_exception_of_the_borrower_leaves_nothing_pinned_or_in_flight(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    parts = PoolParts(layers, store, num_slots=4)

    def compute(fail_after: int) -> None:
        with parts.pool.lease(0, [0, 1, 2, 3, 4, 5]) as lent:
            for _ in range(fail_after):
                next(lent)
            raise ZeroDivisionError

    for fail_after in range(4):
        with pytest.raises(ZeroDivisionError):
            compute(fail_after)
        parts.resident()
    assert sorted(parts.take(1, [0, 1, 2, 3])) == [0, 1, 2, 3]
    assert parts.resident() == ids(1, [0, 1, 2, 3])  # all slots could be had
    parts.pool.close()


def test_a_lease_left_early_leaves_nothing_pinned_or_in_flight(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    parts = PoolParts(layers, store, num_slots=3)
    for num_taken in range(4):
        with parts.pool.lease(0, [0, 1, 2, 3, 4]) as lent:
            for _ in range(num_taken):
                next(lent)
        parts.resident()
    with parts.pool.lease(1, [0, 1, 2]):
        pass  # not even begun
    assert sorted(parts.take(1, [0, 1, 2])) == [0, 1, 2]
    assert parts.resident() == ids(1, [0, 1, 2])
    parts.pool.close()


@pytest.mark.parametrize("direct_io", [True, False])
@pytest.mark.parametrize("num_slots", [2, 4, 12])
def test_a_failed_read_names_expert_and_file_and_the_pool_goes_on(
    layers: tuple[ExpertLayer, ...], num_slots: int, direct_io: bool
) -> None:
    parts = PoolParts(layers, DiskStore(layers, direct_io=direct_io), num_slots)
    path = Path(layers[1].extents[0][0].path)
    whole = Original(path)
    os.truncate(path, layers[1].extents[3][0].offset)
    parts.take(0, [0, 1])
    with pytest.raises(
        ExpertReadError, match=rf"expert \d of layers\.1\.experts: {path} from byte \d+: the file"
    ):
        parts.take(1, [0, 1, 2, 3, 4, 5])
    assert not parts.resident() & ids(1, range(6))
    assert sorted(parts.take(0, [0, 1, 2, 3])) == [0, 1, 2, 3]
    whole.put_back()
    assert sorted(parts.take(1, [0, 1, 2, 3, 4, 5])) == [0, 1, 2, 3, 4, 5]
    assert len(parts.resident()) <= num_slots
    parts.pool.close()


def test_whatever_a_store_raises_reaches_the_borrower(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    class Broken(GatedStore):
        def enter(self, expert: ExpertId) -> None:
            raise MemoryError("no more")

    parts = PoolParts(layers, Broken(store), num_slots=2)
    with pytest.raises(MemoryError, match="no more"):
        parts.take(0, [0, 1, 2])
    assert parts.resident() == set()
    parts.pool.close()


def test_a_read_that_cannot_even_be_ordered_leaves_no_slot_in_flight(
    layers: tuple[ExpertLayer, ...], store: DiskStore
) -> None:
    class Open(GatedStore):
        def enter(self, expert: ExpertId) -> None:
            pass

    parts = PoolParts(layers, Open(store), num_slots=2)
    assert sorted(parts.take(0, [0, 1])) == [0, 1]
    parts.pool.close()  # readers take no more orders
    with pytest.raises(RuntimeError, match="closed"):
        parts.take(0, [2])
    assert len(parts.resident()) == 1


def test_there_is_one_lease_at_a_time(layers: tuple[ExpertLayer, ...], store: DiskStore) -> None:
    gate = threading.Event()

    class Slow(GatedStore):
        def enter(self, expert: ExpertId) -> None:
            assert expert.expert == 0 or gate.wait(timeout=60)

    parts = PoolParts(layers, Slow(store), num_slots=4)
    with parts.pool.lease(0, [0, 1]) as lent:
        assert next(lent)[0].index == 0
        with pytest.raises(AssertionError), parts.pool.lease(0, [1]):
            pass
        gate.set()
        assert next(lent)[0].index == 1
    assert parts.resident() == ids(0, [0, 1])
    parts.pool.close()
