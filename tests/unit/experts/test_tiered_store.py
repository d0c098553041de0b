from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.host import HostStore
from pgmoe.experts.stores.tiered import TieredStore, spread_evenly
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertId, ExpertLayer
from tests.support.expert_files import PoolParts, flip_sign_bits, write_layers


def tiered(layers: tuple[ExpertLayer, ...], held: list[ExpertId]) -> TieredStore:
    disk, host = DiskStore(layers), HostStore(layers, held, pinned=False)
    host.fill(disk, num_readers=2)
    return TieredStore(host, disk)


def test_every_expert_is_read_from_where_it_is(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    held = spread_evenly(layers, 5)
    store = tiered(layers, held)
    for number in range(2):
        for index in range(6):
            expert = ExpertId(number, index)
            assert store.tier_of(expert) == ("host" if expert in held else "disk")
    parts = PoolParts(layers, store, num_slots=4)
    for number in (0, 1, 0):
        assert sorted(parts.take(number, range(6))) == list(range(6))
    parts.pool.close()


def test_bytes_are_counted_under_the_link_that_moved_them(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    layout = layers[0].layout
    parts = PoolParts(layers, tiered(layers, [ExpertId(0, 1), ExpertId(0, 2), ExpertId(1, 3)]), num_slots=6)
    parts.take(0, [0, 1, 2])
    moved = {"host_to_device": 2 * layout.slot_bytes, "disk_to_device": layout.weight_bytes}
    assert dict(parts.stats.transfer_bytes) == moved
    parts.take(0, [0, 1, 2])  # all of them are in slots now
    assert dict(parts.stats.transfer_bytes) == moved
    parts.take(1, [3])
    assert parts.stats.transfer_bytes["host_to_device"] == 3 * layout.slot_bytes
    parts.pool.close()


def test_what_host_memory_holds_is_not_read_from_the_files_again(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    parts = PoolParts(layers, tiered(layers, [ExpertId(0, 1)]), num_slots=2)
    assert parts.take(0, [0]) == [0]
    flip_sign_bits(layers[0])
    with pytest.raises(AssertionError):  # the files' bytes are other ones now
        parts.take(0, [1])
    assert parts.take(0, [2]) == [2]
    parts.pool.close()


def test_a_file_cut_short_fails_only_the_experts_on_disk(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    store = tiered(layers, [ExpertId(1, 5)])
    path = Path(layers[1].extents[0][0].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    parts = PoolParts(layers, store, num_slots=3)
    with pytest.raises(ExpertReadError, match=r"expert 4 of layers\.1"):
        parts.take(1, [4])
    with parts.pool.lease(1, [5]) as lent:
        assert [expert.index for (expert,) in lent] == [5]
    path.write_bytes(whole)
    assert sorted(parts.take(1, [4, 5])) == [4, 5]
    parts.pool.close()


def test_a_closed_store_holds_no_file(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    store = tiered(layers, spread_evenly(layers, 6))
    opened = {fd.resolve() for fd in Path("/proc/self/fd").iterdir()}
    assert set(tmp_path.iterdir()) <= opened
    store.close()
    opened = {fd.resolve() for fd in Path("/proc/self/fd").iterdir()}
    assert not set(tmp_path.iterdir()) & opened


def layers_of(sizes: list[int]) -> list[ExpertLayer]:
    layout = BlobLayout.pack({"up": (1,)}, torch.uint8)
    return [ExpertLayer("", layout, ExpertFFN(torch.relu), ((),) * size, top_k=1) for size in sizes]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.floats(0, 1))
def test_the_experts_held_are_the_same_share_of_every_layer(sizes: list[int], share: float) -> None:
    count = round(share * sum(sizes))
    held = spread_evenly(layers_of(sizes), count)
    assert len(set(held)) == len(held) == count
    assert all(0 <= e.expert < sizes[e.layer] for e in held)
    per_layer = Counter(e.layer for e in held)
    # No layer has a larger share than another would have with one expert more.
    most = min((per_layer[i] + 1) / size for i, size in enumerate(sizes))
    assert all(per_layer[i] / size <= most for i, size in enumerate(sizes))


def test_half_of_layers_of_different_sizes_is_half_of_each() -> None:
    held = spread_evenly(layers_of([8, 16, 4]), 14)
    assert Counter(e.layer for e in held) == {0: 4, 1: 8, 2: 2}
    assert held == spread_evenly(layers_of([8, 16, 4]), 14)
