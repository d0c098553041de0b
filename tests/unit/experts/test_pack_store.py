from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.opening import open_disk_store
from pgmoe.experts.stores.pack import PackStore
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.memory import page_aligned
from tests.support.damage import flip_bit
from tests.support.expert_files import PoolParts, file_bytes, tensor_bytes, write_layers, write_packed_layers
from tests.support.left_over import open_files, own_threads

UNTOUCHED = 0xA5
both_ways = pytest.mark.parametrize("direct_io", [True, False], ids=["direct", "buffered"])
LAST = ExpertId(1, 5)


@pytest.fixture
def packed(layers: tuple[ExpertLayer, ...], tmp_path: Path) -> tuple[ExpertLayer, ...]:
    """The two layers of `layers` as a pack has them."""
    return write_packed_layers(tmp_path / "pack", layers)


@contextmanager
def opened(
    layers: tuple[ExpertLayer, ...], *, direct_io: bool = True, check: bool = False
) -> Iterator[PackStore]:
    store = PackStore(layers, direct_io=direct_io, check=check)
    try:
        yield store
    finally:
        store.close()


def read(store: PackStore, layers: tuple[ExpertLayer, ...], expert: ExpertId) -> dict[str, bytes]:
    layout = layers[expert.layer].layout
    slot = page_aligned(layout.slot_bytes)
    assert store.read(expert, slot) == layout.weight_bytes
    return tensor_bytes(layout.views(slot, store.starts(expert)))


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_expert_is_read_as_from_the_files_it_was_packed_of_by_several_threads(
    tmp_path: Path, dtype: torch.dtype, direct_io: bool
) -> None:
    layers = write_layers(tmp_path, num_experts=12, dtype=dtype)
    packed = write_packed_layers(tmp_path / "pack", layers)
    experts = [ExpertId(i, e) for i in range(2) for e in range(12)] * 4
    with opened(packed, direct_io=direct_io) as store, ThreadPoolExecutor(6) as threads:

        def is_right(expert: ExpertId) -> bool:
            return read(store, packed, expert) == file_bytes(layers[expert.layer], expert.expert)

        assert all(threads.map(is_right, experts))


@both_ways
def test_a_larger_slot_is_touched_no_further_than_the_blob(
    packed: tuple[ExpertLayer, ...], direct_io: bool
) -> None:
    blob_bytes = packed[1].layout.slot_bytes
    slot = page_aligned(2 * blob_bytes).fill_(UNTOUCHED)
    with opened(packed, direct_io=direct_io) as store:
        store.read(LAST, slot)
    assert (slot[blob_bytes:] == UNTOUCHED).all()


def test_memory_at_an_odd_address_is_filled_all_the_same(packed: tuple[ExpertLayer, ...]) -> None:
    layout = packed[1].layout
    slot = page_aligned(layout.slot_bytes + 4)[4:]
    with opened(packed) as store:
        store.read(LAST, slot)
        assert tensor_bytes(layout.views(slot, store.starts(LAST))) == file_bytes(packed[1], LAST.expert)


def test_a_pool_serves_experts_of_a_pack(packed: tuple[ExpertLayer, ...]) -> None:
    with opened(packed) as store:
        parts = PoolParts(packed, store, num_slots=3)
        for layer in (0, 1, 0):
            assert sorted(parts.take(layer, range(6))) == list(range(6))
        parts.pool.close()


@both_ways
def test_a_file_cut_while_serving_is_named_with_the_expert_and_serves_again_when_it_is_whole(
    packed: tuple[ExpertLayer, ...], direct_io: bool
) -> None:
    blob = packed[1].blobs[LAST.expert]
    path = Path(blob.path)
    whole = path.read_bytes()
    with opened(packed, direct_io=direct_io) as store:
        for size in (len(whole) - 1, blob.offset + 1, blob.offset, 0):
            os.truncate(path, size)
            with pytest.raises(ExpertReadError, match=rf"expert 5 of layers.1.experts: {path} .* too early"):
                read(store, packed, LAST)
            assert read(store, packed, ExpertId(0, 5))
        path.write_bytes(whole)
        assert read(store, packed, LAST) == file_bytes(packed[1], LAST.expert)


@both_ways
def test_of_a_file_that_was_written_to_only_blobs_that_are_still_right_are_served(
    packed: tuple[ExpertLayer, ...], direct_io: bool
) -> None:
    blob = packed[1].blobs[LAST.expert]
    with opened(packed, direct_io=direct_io) as store:
        flip_bit(Path(blob.path), blob.offset + blob.nbytes - 1)
        fault = rf"expert 5 of layers.1.experts: {blob.path} from byte {blob.offset}: the file was changed"
        with pytest.raises(ExpertReadError, match=fault):
            read(store, packed, LAST)
        for expert in range(5):
            assert read(store, packed, ExpertId(1, expert)) == file_bytes(packed[1], expert)
        flip_bit(Path(blob.path), blob.offset + blob.nbytes - 1)
        assert read(store, packed, LAST) == file_bytes(packed[1], LAST.expert)


@both_ways
def test_a_file_deleted_or_replaced_is_read_as_it_was_opened(
    packed: tuple[ExpertLayer, ...], tmp_path: Path, direct_io: bool
) -> None:
    expected = file_bytes(packed[1], LAST.expert)
    path, new = Path(packed[1].blobs[0].path), tmp_path / "new"
    new.write_bytes(bytes(path.stat().st_size))
    with opened(packed, direct_io=direct_io) as store:
        for change in (lambda: new.replace(path), path.unlink):
            change()
            assert read(store, packed, LAST) == expected


def test_a_file_that_is_not_there_is_named(packed: tuple[ExpertLayer, ...]) -> None:
    path = Path(packed[1].blobs[0].path)
    path.unlink()
    with pytest.raises(ExpertReadError, match=f"{path}: No such file"):
        PackStore(packed)


def test_closing_gives_back_every_file_and_ends_the_check(
    packed: tuple[ExpertLayer, ...], tmp_path: Path
) -> None:
    threads = own_threads()
    store = PackStore(packed, check=True)
    assert open_files(tmp_path / "pack")
    store.close()
    assert not open_files(tmp_path / "pack")
    assert own_threads() <= threads


def test_without_the_check_nothing_is_known_to_be_corrupt(packed: tuple[ExpertLayer, ...]) -> None:
    flip_bit(Path(packed[1].blobs[LAST.expert].path), packed[1].blobs[LAST.expert].offset)
    with opened(packed) as store:
        assert read(store, packed, LAST)


def test_the_files_decide_which_store_reads_them(
    layers: tuple[ExpertLayer, ...], packed: tuple[ExpertLayer, ...]
) -> None:
    for given, kind in ((layers, DiskStore), (packed, PackStore)):
        store = open_disk_store(given, direct_io=True, check_pack=False)
        assert type(store) is kind
        store.close()
