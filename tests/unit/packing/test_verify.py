from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pgmoe.errors import ConfigError, CorruptCheckpoint
from pgmoe.models.pack import PackedLayer, read_pack
from pgmoe.packing.verify import verify_pack
from tests.conftest import TinyCheckpoints
from tests.support.damage import cut, flip_bit
from tests.support.packs import packed

CRC = "its checksum is not that of pack.json"


@pytest.fixture(scope="module")
def whole(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tiny("mixtral"), tmp_path_factory.mktemp("packs") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A pack to be damaged."""
    return shutil.copytree(whole, tmp_path / "pack")


def layer(folder: Path, index: int) -> PackedLayer:
    return read_pack(folder).layers[index]


def test_a_whole_pack_is_read_to_its_end_with_progress(whole: Path) -> None:
    told: list[tuple[int, int]] = []
    found = verify_pack(str(whole), lambda *sizes: told.append(sizes))
    size = sum(path.stat().st_size for path in whole.glob("*.safetensors"))
    assert found.corrupt == ()
    assert found.num_bytes == size
    assert told[-1] == (size, size)
    assert found.num_parts == 1 + 3 * (1 + 8)


def test_every_corrupt_part_is_named_and_no_other(folder: Path) -> None:
    second = layer(folder, 1)
    path = folder / second.file
    for offset in (0, second.blob_offset(2), second.blob_offset(8) - 1):
        flip_bit(path, offset)
    flip_bit(folder / "dense.safetensors", 5000)
    found = verify_pack(str(folder)).corrupt
    size = (folder / "dense.safetensors").stat().st_size
    name = "model.layers.1.mlp.experts"
    size_and_place = [f"{second.blob_bytes} bytes from byte {second.blob_offset(e)}" for e in (2, 7)]
    assert [str(corrupt) for corrupt in found] == [
        f"dense.safetensors: dense weights, {size} bytes from byte 0: {CRC}",
        f"{second.file}: header of {name}, 4096 bytes from byte 0: {CRC}",
        f"{second.file}: expert 2 of {name}, {size_and_place[0]}: {CRC}",
        f"{second.file}: expert 7 of {name}, {size_and_place[1]}: {CRC}",
    ]
    assert [(c.part.layer, c.part.expert) for c in found[2:]] == [(name, 2), (name, 7)]


def test_any_flipped_bit_of_a_blob_is_found(folder: Path) -> None:
    first = layer(folder, 0)
    for offset in range(first.blob_offset(1), first.blob_offset(2), 1021):
        flip_bit(folder / first.file, offset)
        (corrupt,) = verify_pack(str(folder)).corrupt
        assert corrupt.part.expert == 1
        flip_bit(folder / first.file, offset)


def test_a_file_cut_short_or_gone_is_told_part_by_part(folder: Path) -> None:
    first, second = layer(folder, 0), layer(folder, 1)
    cut(folder / first.file, first.blob_offset(6) + 1)
    (folder / second.file).unlink()
    found = verify_pack(str(folder)).corrupt
    assert [(c.part.file, c.part.expert) for c in found] == [
        (first.file, 6), (first.file, 7),
        (second.file, None), *((second.file, e) for e in range(8)),
    ]  # fmt: skip
    assert "too early" in found[0].why
    assert found[-1].why == "No such file or directory"


@pytest.mark.parametrize("file", ["dense.safetensors", "experts-00001.safetensors"])
def test_a_file_that_has_more_is_told(folder: Path, file: str) -> None:
    size = (folder / file).stat().st_size
    with open(folder / file, "ab") as opened:
        opened.write(b"more")
    (corrupt,) = verify_pack(str(folder)).corrupt
    assert str(corrupt) == f"{file}: whole file, {size} bytes from byte 0: it has {size + 4} bytes"


def test_what_is_no_pack_is_refused(tiny: TinyCheckpoints) -> None:
    with pytest.raises(ConfigError, match="no pack; `pgmoe pack` makes one"):
        verify_pack(str(tiny("mixtral")))


def test_a_pack_without_a_readable_description_is_refused(folder: Path) -> None:
    cut(folder / "pack.json", 100)
    with pytest.raises(CorruptCheckpoint, match=f"{folder}/pack.json"):
        verify_pack(str(folder))
