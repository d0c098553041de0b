from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.host import HostStore
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertId, ExpertLayer, Extent
from pgmoe.memory import page_aligned
from tests.support.expert_files import PoolParts, file_bytes, tensor_bytes, write_layers


def test_every_expert_is_copied_and_read_back(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    disk, host = DiskStore(layers), HostStore(layers, pinned=False)
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
    disk, host = DiskStore(tuple(layers)), HostStore(tuple(layers), pinned=False)
    host.fill(disk, num_readers=2)
    parts = PoolParts(tuple(layers), host, num_slots=2)
    for layer in (0, 1, 0):
        assert sorted(parts.take(layer, [0, 1])) == [0, 1]
    parts.pool.close()
    disk.close()


def test_progress_is_told_every_byte_in_the_callers_thread(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    disk, told = DiskStore(layers), []
    threads = set()

    def progress(num_bytes: int) -> None:
        threads.add(threading.current_thread())
        told.append(num_bytes)

    HostStore(layers, pinned=False).fill(disk, num_readers=4, progress=progress)
    disk.close()
    assert sum(told) == sum(layer.num_experts * layer.layout.weight_bytes for layer in layers)
    assert threads == {threading.current_thread()}


def test_an_expert_that_cannot_be_read_ends_the_copy_with_its_name(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    disk = DiskStore(layers)
    os.truncate(layers[1].extents[0][0].path, 30_000)
    with pytest.raises(ExpertReadError, match=r"expert \d of layers\.1\.experts: .*layer-1\.bin"):
        HostStore(layers, pinned=False).fill(disk, num_readers=3)
    disk.close()
