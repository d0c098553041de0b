"""Guesses and exact selections in the pool, with a link whose every arrival is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pgmoe.errors import ExpertReadError
from pgmoe.experts.cache import SlotState
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId, ExpertLayer
from tests.support.expert_files import GatedStore, PoolParts
from tests.support.transfers import FakeClock

UNLIMITED = float("inf")
Layers = tuple[ExpertLayer, ...]


def ids(layer: int, experts: Sequence[int]) -> set[ExpertId]:
    return {ExpertId(layer, e) for e in experts}


def parts_of(layers: Layers, store: DiskStore, num_slots: int) -> tuple[PoolParts, FakeClock]:
    """An expert takes a second."""
    clock = FakeClock()
    return PoolParts(layers, store, num_slots, clock=clock), clock


def guess(parts: PoolParts, layer: int, experts: Sequence[int], max_bytes: float = UNLIMITED) -> int:
    size = parts.layers[layer].layout.weight_bytes
    num_bytes = parts.pool.prefetch(layer, experts, exact=False, max_bytes=max_bytes)
    parts.pool.check_integrity()
    assert num_bytes <= max_bytes
    assert num_bytes % size == 0
    return num_bytes // size


def exact(parts: PoolParts, layer: int, experts: Sequence[int]) -> int:
    num_bytes = parts.pool.prefetch(layer, experts, exact=True, max_bytes=UNLIMITED)
    parts.pool.check_integrity()
    return num_bytes // parts.layers[layer].layout.weight_bytes


def outcomes(parts: PoolParts) -> dict[str, int]:
    """In experts."""
    size = parts.layers[0].layout.weight_bytes
    return {name: num_bytes // size for name, num_bytes in (+parts.stats.prefetch_bytes).items()}


def test_a_guess_that_is_there_in_time_is_a_hit_and_useful(layers: Layers, store: DiskStore) -> None:
    parts, clock = parts_of(layers, store, 6)
    assert guess(parts, 1, [4, 2]) == 2
    clock.time = 2.0
    assert parts.take(1, [2, 4]) == [2, 4]
    assert clock.time == 2.0
    assert (parts.stats.hits[1], parts.stats.misses[1]) == (2, 0)
    assert outcomes(parts) == {"useful": 2}
    parts.take(1, [2, 4])
    assert outcomes(parts) == {"useful": 2}  # counted at its first use alone
    assert dict(parts.stats.links["emulated"].num_bytes) == {"prefetch": 2 * layers[1].layout.weight_bytes}


def test_a_guess_still_under_way_is_late_and_comes_before_other_guesses_and_once(
    layers: Layers, store: DiskStore
) -> None:
    parts, clock = parts_of(layers, store, 6)
    assert guess(parts, 0, [0]) == 1
    assert guess(parts, 1, [1, 2, 3]) == 3
    assert parts.take(1, [3]) == [3]
    assert clock.time == 2.0  # after the one that was moving, before 1 and 2, which were wrong
    assert (parts.stats.hits[1], parts.stats.misses[1]) == (0, 1)
    assert outcomes(parts) == {"late": 1}
    assert parts.stats.num_bytes == 2 * layers[1].layout.weight_bytes


def test_wrong_guesses_that_wait_are_dropped_when_their_layer_has_its_turn(
    layers: Layers, store: DiskStore
) -> None:
    parts, clock = parts_of(layers, store, 6)
    guess(parts, 0, [0])
    guess(parts, 1, [1, 2])
    parts.take(1, [5])
    assert parts.pool.is_missing(ExpertId(1, 1))
    assert parts.pool.is_missing(ExpertId(1, 2))
    assert parts.pool.guessed_bytes_under_way == 0
    assert clock.time == 2.0
    assert outcomes(parts) == {}
    assert parts.resident() == {ExpertId(0, 0), ExpertId(1, 5)}


def test_a_guess_that_is_evicted_unused_is_wasted(layers: Layers, store: DiskStore) -> None:
    parts, clock = parts_of(layers, store, 2)
    guess(parts, 1, [1])
    clock.time = 1.0
    parts.take(1, [0, 2])
    assert outcomes(parts) == {"wasted": 1}
    assert parts.stats.evictions[1] == 1


def test_guesses_end_before_their_bytes_are_used_up(layers: Layers, store: DiskStore) -> None:
    parts, _ = parts_of(layers, store, 6)
    size = layers[0].layout.weight_bytes
    assert guess(parts, 0, [0, 1, 2, 3], max_bytes=0) == 0
    assert guess(parts, 0, [0, 1, 2, 3], max_bytes=3 * size - 1) == 2
    assert parts.pool.guessed_bytes_under_way == 2 * size
    assert guess(parts, 0, [0, 1, 2, 3], max_bytes=size) == 1  # those under way cost nothing again
    assert parts.in_state(SlotState.IN_FLIGHT) == ids(0, [0, 1, 2])


def test_a_guess_evicts_nobody_in_use_expected_or_under_way(layers: Layers, store: DiskStore) -> None:
    parts, _ = parts_of(layers, store, 3)
    with parts.pool.lease(0, [0, 1, 2], at_once=3) as lent:
        assert guess(parts, 1, [0]) == 0  # all under way on demand
        for _ in lent:
            assert guess(parts, 1, [0]) == 0  # pinned, or used in this turn
    assert guess(parts, 1, [0]) == 0
    guess(parts, 0, [0, 1, 2])
    parts.take(1, [])  # layer 0's experts are cold now, but expected
    assert guess(parts, 1, [0]) == 0
    guess(parts, 0, [0, 1])
    assert guess(parts, 1, [0, 1]) == 1
    assert parts.in_state(SlotState.READY) == ids(0, [0, 1])


def test_an_exact_selection_evicts_warm_experts_but_no_pinned_or_expected_ones(
    layers: Layers, store: DiskStore
) -> None:
    parts, _ = parts_of(layers, store, 3)
    with parts.pool.lease(0, [0, 1, 2], at_once=2) as lent:
        while len(parts.in_state(SlotState.READY)) < 3:
            batch = next(lent)
        held = ids(0, [expert.index for expert in batch])
        guess(parts, 0, [e for e in (0, 1, 2) if ExpertId(0, e) not in held][:1])
        ordered = exact(parts, 1, [0, 1, 2])
        assert ordered == 3 - len(held) - 1
        assert held <= parts.in_state(SlotState.READY)


def test_an_open_lease_hears_of_what_arrives_while_guesses_are_ordered(
    layers: Layers, store: DiskStore
) -> None:
    parts, clock = parts_of(layers, store, 6)
    with parts.pool.lease(0, [0, 1]) as lent:
        clock.time = 5.0  # both have come
        assert guess(parts, 1, [0]) == 1
        assert [expert.index for (expert,) in lent] == [0, 1]
    assert clock.time == 5.0


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_demand_gets_slots_that_are_all_taken_by_guesses(
    layers: Layers, store: DiskStore, num_slots: int
) -> None:
    parts, clock = parts_of(layers, store, num_slots)
    assert exact(parts, 1, range(num_slots)) == num_slots
    assert sorted(parts.take(0, [5, 3, 1])) == [1, 3, 5]
    assert clock.time == 4.0  # the one that was moving, then three
    parts.resident()


def test_a_lease_left_early_drops_the_guess_that_it_waited_for(layers: Layers, store: DiskStore) -> None:
    parts, clock = parts_of(layers, store, 6)
    guess(parts, 0, [0])
    guess(parts, 1, [1])
    with parts.pool.lease(1, [1, 2]):
        pass
    assert clock.time == 0.0
    assert parts.in_state(SlotState.IN_FLIGHT) == ids(0, [0])
    assert sorted(parts.take(1, [1, 2])) == [1, 2]


@pytest.mark.parametrize("num_host_blobs", [0, 2])
def test_a_guess_that_fails_is_silent_and_its_demand_says_why(
    layers: Layers, store: DiskStore, num_host_blobs: int
) -> None:
    class Broken(GatedStore):
        fails = True

        def enter(self, expert: ExpertId) -> None:
            if self.fails and expert == ExpertId(1, 3):
                raise ExpertReadError(f"expert {expert}: broken")

    broken = Broken(store)
    parts = PoolParts(layers, broken, 4, num_host_blobs=num_host_blobs)
    guess(parts, 1, [3])
    assert sorted(parts.take(0, [0, 1])) == [0, 1]
    with pytest.raises(ExpertReadError, match="expert=3"):
        parts.take(1, [3])
    broken.fails = False
    assert parts.take(1, [3]) == [3]
    parts.pool.close()


def test_a_guess_that_gets_no_slot_evicts_nothing_from_host_memory(layers: Layers, store: DiskStore) -> None:
    parts = PoolParts(layers, store, num_slots=2, num_host_blobs=3)
    parts.take(0, [0])
    parts.take(0, [1, 2])
    assert parts.host is not None
    assert len(parts.host) == 3
    assert guess(parts, 1, [0]) == 0  # both slots' experts are warm
    assert len(parts.host) == 3
    parts.pool.close()


def test_a_pool_whose_link_is_closed_says_so_each_time(layers: Layers, store: DiskStore) -> None:
    parts = PoolParts(layers, DiskStore(layers), num_slots=2)
    parts.pool.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            parts.take(0, [2])
    with pytest.raises(RuntimeError, match="closed"):
        guess(parts, 0, [2])
    assert parts.resident() == set()
