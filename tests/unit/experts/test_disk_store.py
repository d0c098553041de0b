from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import PAGE, BlobLayout, ExpertFFN, ExpertId, ExpertLayer, Extent
from pgmoe.memory import page_aligned
from tests.support.damage import Original, flip_bit
from tests.support.expert_files import file_bytes, tensor_bytes, write_layers
from tests.support.left_over import open_files

UNTOUCHED = 0xA5
FILE_BYTES = 6 * PAGE + 1000  # its end lies within a page
CONTENT = np.random.default_rng(0).integers(0, 256, FILE_BYTES, dtype=np.uint8).tobytes()
both_ways = pytest.mark.parametrize("direct_io", [True, False], ids=["direct", "buffered"])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "experts.bin"
    path.write_bytes(CONTENT)
    return path


@contextmanager
def opened(layers: tuple[ExpertLayer, ...], direct_io: bool = True) -> Iterator[DiskStore]:
    store = DiskStore(layers, direct_io=direct_io)
    try:
        yield store
    finally:
        store.close()


def one_expert(extents: list[Extent]) -> ExpertLayer:
    sizes: dict[str, int] = {}
    for extent in extents:
        sizes[extent.tensor] = sizes.get(extent.tensor, 0) + extent.nbytes
    layout = BlobLayout.pack({name: (size,) for name, size in sizes.items()}, torch.uint8)
    return ExpertLayer("layer", layout, ExpertFFN(torch.relu), (tuple(extents),), top_k=1)


def fresh_slot(layer: ExpertLayer) -> Tensor:
    return page_aligned(layer.layout.slot_bytes).fill_(UNTOUCHED)


lengths = st.one_of(
    st.integers(1, 40), st.integers(1, 4 * PAGE), st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
)


@st.composite
def places(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(offset, bytes) anywhere in the file: at a page, at its end, at odd bytes, some right after another."""
    found: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(2, 4))):
        after = sum(found[-1]) if found else FILE_BYTES
        if after < FILE_BYTES and draw(st.booleans()):
            found.append((after, min(draw(lengths), FILE_BYTES - after)))
            continue
        nbytes = draw(lengths)
        last = FILE_BYTES - nbytes
        aligned = st.integers(0, last // 8).map(lambda n: 8 * n)
        found.append((draw(st.one_of(aligned, st.integers(0, last), st.just(last))), nbytes))
    return draw(st.permutations(found))


@both_ways
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(places())
def test_any_extents_are_read_exactly_and_nothing_around_them_is_touched(
    path: Path, direct_io: bool, places: list[tuple[int, int]]
) -> None:
    *up, down = places
    extents, place = [], 0
    for offset, nbytes in up:
        extents.append(Extent(str(path), offset, nbytes, "up", place))
        place += nbytes
    layer = one_expert([*extents, Extent(str(path), *down, "down", 0)])
    slot = fresh_slot(layer)
    with opened((layer,), direct_io) as store:
        moved = store.read(ExpertId(0, 0), slot)
        starts = store.starts(ExpertId(0, 0))
    expected = {
        "up": b"".join(CONTENT[offset : offset + nbytes] for offset, nbytes in up),
        "down": CONTENT[down[0] : down[0] + down[1]],
    }
    assert tensor_bytes(layer.layout.views(slot, starts)) == expected
    assert moved == layer.layout.weight_bytes
    outside = torch.ones(len(slot), dtype=torch.bool)
    for region in layer.layout.regions:
        outside[starts[region.name] : starts[region.name] + region.nbytes] = False
    assert (slot[outside] == UNTOUCHED).all()


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_read_by_several_threads_at_once(
    tmp_path: Path, dtype: torch.dtype, direct_io: bool
) -> None:
    layers = write_layers(tmp_path, num_experts=12, dtype=dtype)
    experts = [ExpertId(i, e) for i in range(2) for e in range(12)] * 4
    with opened(layers, direct_io) as store, ThreadPoolExecutor(6) as threads:

        def load(expert: ExpertId) -> bool:
            layer = layers[expert.layer]
            slot = fresh_slot(layer)
            store.read(expert, slot)
            found = tensor_bytes(layer.layout.views(slot, store.starts(expert)))
            return found == file_bytes(layer, expert.expert)

        assert all(threads.map(load, experts))


def test_tensors_at_odd_places_of_a_file_are_read(tmp_path: Path) -> None:
    # safetensors allows a header of any length, so a tensor may start at an odd byte.
    path = tmp_path / "odd.bin"
    weights = torch.randn(3000)
    path.write_bytes(b"xyz" + weights.numpy().tobytes())
    layout = BlobLayout.pack({"up": (3000,)}, torch.float32)
    extent = Extent(str(path), 3, layout.weight_bytes, "up", 0)
    layer = ExpertLayer("layer", layout, ExpertFFN(torch.relu), ((extent,),), top_k=1)
    slot = fresh_slot(layer)
    with opened((layer,)) as store:
        store.read(ExpertId(0, 0), slot)
        assert torch.equal(layout.views(slot, store.starts(ExpertId(0, 0)))["up"], weights)


def test_direct_reads_are_used_where_the_file_system_has_them_and_wanted(path: Path) -> None:
    layer = one_expert([Extent(str(path), 0, 10, "up", 0)])
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        possible = True
    except OSError:
        possible = False
    for wanted in (True, False):
        with opened((layer,), wanted) as store:
            assert store.direct_io == (wanted and possible)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    there = tmp_path / "a"
    there.write_bytes(b"0123456789")
    extents = [Extent(str(there), 0, 10, "up", 0), Extent(str(tmp_path / "b"), 0, 10, "down", 0)]
    with pytest.raises(ExpertReadError, match=f"{tmp_path}/b: No such file"):
        DiskStore((one_expert(extents),))


@both_ways
@pytest.mark.parametrize("nbytes", [10, 3 * PAGE], ids=["within a page", "pages"])
def test_a_file_that_ends_too_early_is_named_with_the_expert(
    tmp_path: Path, direct_io: bool, nbytes: int
) -> None:
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(range(256)) * 100)
    layer = one_expert([Extent(str(path), 5000, nbytes, "up", 0)])
    slot = fresh_slot(layer)
    with opened((layer,), direct_io) as store:
        whole = Original(path)
        for size in (5000 + nbytes - 1, 5000, 4096, 1, 0):
            os.truncate(path, size)
            with pytest.raises(ExpertReadError, match=rf"expert 0 of layer: {path} .* bytes too early"):
                store.read(ExpertId(0, 0), slot)
        whole.put_back()
        assert store.read(ExpertId(0, 0), slot) == nbytes


@both_ways
def test_a_file_deleted_or_replaced_is_read_as_it_was_opened(tmp_path: Path, direct_io: bool) -> None:
    (layer,) = write_layers(tmp_path, num_layers=1, num_experts=3)
    expected = file_bytes(layer, 2)
    slot = fresh_slot(layer)
    with opened((layer,), direct_io) as store:
        path = Path(layer.extents[0][0].path)
        new = tmp_path / "new"
        new.write_bytes(b"\0" * path.stat().st_size)
        for change in (lambda: new.replace(path), path.unlink):
            change()
            store.read(ExpertId(0, 2), slot)
            assert tensor_bytes(layer.layout.views(slot, store.starts(ExpertId(0, 2)))) == expected


@both_ways
@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_was_written_to_is_named_with_the_expert_until_it_is_put_back(
    tmp_path: Path, direct_io: bool, same_size: bool
) -> None:
    (layer,) = write_layers(tmp_path, num_layers=1, num_experts=3)
    slot, expert = fresh_slot(layer), ExpertId(0, 2)
    path = Path(layer.extents[2][0].path)
    whole = Original(path)
    with opened((layer,), direct_io) as store:
        if same_size:
            flip_bit(path, layer.extents[2][0].offset)
        else:
            os.truncate(path, len(whole.content) + 1)
        with pytest.raises(ExpertReadError, match=rf"expert 2 of .*: {path} .*the file was changed while it"):
            store.read(expert, slot)
        whole.put_back()
        store.read(expert, slot)
        assert tensor_bytes(layer.layout.views(slot, store.starts(expert))) == file_bytes(layer, 2)


def test_closing_gives_back_every_file(path: Path) -> None:
    store = DiskStore((one_expert([Extent(str(path), 0, 10, "up", 0)]),))
    assert open_files(path.parent)
    store.close()
    assert not open_files(path.parent)


def test_memory_that_the_file_system_does_not_take_for_a_direct_read_is_filled_all_the_same(
    path: Path,
) -> None:
    layer = one_expert([Extent(str(path), PAGE, 2 * PAGE, "a", 0)])
    with opened((layer,)) as store:
        slot = page_aligned(layer.layout.slot_bytes + 1)[1:]  # at an odd address
        store.read(ExpertId(0, 0), slot)
        assert tensor_bytes(layer.layout.views(slot, store.starts(ExpertId(0, 0)))) == file_bytes(layer, 0)
