from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.host import HostStore, split_into_blocks
from pgmoe.experts.stores.tiered import spread_evenly
from pgmoe.layout import PAGE, BlobLayout, ExpertFFN, ExpertId, ExpertLayer, Extent
from pgmoe.memory import page_aligned
from tests.support.expert_files import PoolParts, file_bytes, tensor_bytes, write_layers


def test_every_expert_is_copied_and_read_back(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    disk, host = DiskStore(layers), HostStore(layers, spread_evenly(layers, 12), pinned=False)
    host.fill(disk, num_readers=3)
    disk.close()
    expected = {ExpertId(i, e): file_bytes(layers[i], e) for i in range(2) for e in range(6)}
    for path in tmp_path.iterdir():
        path.unlink()  # nothing is read from the files any more
    slot = page_aligned(layers[0].layout.slot_bytes)
    for expert, weights in expected.items():
        host.read(expert, slot)
        assert tensor_bytes(layers[expert.layer].layout.views(slot, host.starts(expert))) == weights
    assert host.nbytes >= sum(layer.num_experts * layer.layout.weight_bytes for layer in layers)


def test_layers_of_different_sizes_share_slots_of_the_largest(tmp_path: Path) -> None:
    layers = []
    for number, width in enumerate((5, 3000)):
        path = tmp_path / str(number)
        path.write_bytes(os.urandom(2 * 4 * width))
        layout = BlobLayout.pack({"up": (width,)}, torch.float32)
        extents = tuple((Extent(str(path), e * 4 * width, 4 * width, "up", 0),) for e in range(2))
        layers.append(ExpertLayer(f"layers.{number}", layout, ExpertFFN(torch.relu), extents, top_k=1))
    disk, host = DiskStore(tuple(layers)), HostStore(tuple(layers), spread_evenly(layers, 4), pinned=False)
    host.fill(disk, num_readers=2)
    parts = PoolParts(tuple(layers), host, num_slots=2)
    for layer in (0, 1, 0):
        assert sorted(parts.take(layer, [0, 1])) == [0, 1]
    parts.pool.close()
    disk.close()


def test_only_the_experts_held_take_memory(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    held = [ExpertId(0, 4), ExpertId(1, 0), ExpertId(1, 5)]
    disk, host = DiskStore(layers), HostStore(layers, held, pinned=False)
    host.fill(disk, num_readers=2)
    disk.close()
    assert host.nbytes == 3 * layers[0].layout.slot_bytes
    assert [e for e in spread_evenly(layers, 12) if e in host] == held
    slot = page_aligned(layers[0].layout.slot_bytes)
    for expert in held:
        host.read(expert, slot)
        views = layers[expert.layer].layout.views(slot, host.starts(expert))
        assert tensor_bytes(views) == file_bytes(layers[expert.layer], expert.expert)


def test_experts_of_several_blocks_do_not_overlap(tmp_path: Path) -> None:
    layers = write_layers(tmp_path, num_layers=3, num_experts=150)
    every = spread_evenly(layers, 3 * layers[0].num_experts)
    assert len(split_into_blocks(len(every), layers[0].layout.slot_bytes)) > 5
    disk, host = DiskStore(layers), HostStore(layers, every, pinned=False)
    host.fill(disk, num_readers=2)
    disk.close()
    parts = PoolParts(layers, host, num_slots=8)
    for number, layer in enumerate(layers):
        assert len(parts.take(number, range(layer.num_experts))) == layer.num_experts
    parts.pool.close()


@given(st.integers(1, 2000), st.integers(2, 100_000))
def test_blocks_hold_all_slots_and_waste_little_of_their_powers_of_two(num_slots: int, pages: int) -> None:
    """torch's pinned allocator gives whole powers of two, and alignment takes a page of each block."""
    blocks = split_into_blocks(num_slots, pages * PAGE)
    assert sum(blocks) == num_slots
    asked = [block * pages * PAGE + PAGE for block in blocks]
    wasted = sum((1 << (size - 1).bit_length()) - size for size in asked)
    assert wasted <= (num_slots / 30 + len(set(blocks))) * pages * PAGE


def test_a_copy_to_ram_starts_no_openmp_thread(tmp_path: Path) -> None:
    """OpenMP counts every thread that enters it and then, beyond the cores, stops spinning."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 22))
    layout = BlobLayout.pack({"up": (1 << 22,)}, torch.uint8)
    extents = ((Extent(str(path), 0, 1 << 22, "up", 0),),)
    layers = (ExpertLayer("layer", layout, ExpertFFN(torch.relu), extents, top_k=1),)
    disk, host = DiskStore(layers), HostStore(layers, [ExpertId(0, 0)], pinned=False)
    host.fill(disk, num_readers=1)
    disk.close()
    slot, num_threads, started = page_aligned(layout.slot_bytes), torch.get_num_threads(), []

    def read() -> None:
        torch.set_num_threads(4)
        before = set(os.listdir("/proc/self/task"))
        host.read(ExpertId(0, 0), slot)
        started.append(set(os.listdir("/proc/self/task")) - before)

    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    torch.set_num_threads(num_threads)
    assert started == [set()]


def test_progress_is_told_every_byte_in_the_callers_thread(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    disk, host, told = DiskStore(layers), HostStore(layers, spread_evenly(layers, 7), pinned=False), []
    threads = set()

    def progress(num_bytes: int) -> None:
        threads.add(threading.current_thread())
        told.append(num_bytes)

    host.fill(disk, num_readers=4, progress=progress)
    disk.close()
    assert told == [layers[0].layout.weight_bytes] * 7
    assert threads == {threading.current_thread()}


def test_an_expert_that_cannot_be_read_ends_the_copy_with_its_name(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    disk, host = DiskStore(layers), HostStore(layers, spread_evenly(layers, 12), pinned=False)
    os.truncate(layers[1].extents[0][0].path, 30_000)
    with pytest.raises(ExpertReadError, match=r"expert \d of layers\.1\.experts: .*layer-1\.bin"):
        host.fill(disk, num_readers=3)
    disk.close()
