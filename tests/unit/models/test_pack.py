from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgmoe.errors import CorruptCheckpoint
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.loader import read_plan
from pgmoe.models.pack import is_pack, read_pack
from tests.conftest import TinyCheckpoints
from tests.support.damage import cut, edit_config
from tests.support.packs import packed

WAY_OUT = "remove the pack and make it again"


@pytest.fixture(scope="module")
def whole(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tiny("qwen2_moe"), tmp_path_factory.mktemp("packs") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A pack to be damaged."""
    return shutil.copytree(whole, tmp_path / "pack")


def edit_pack(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "pack.json").read_text())
    change(content)
    (folder / "pack.json").write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    """The message with which this pack is refused, which always names the folder and the way out."""
    with pytest.raises(CorruptCheckpoint) as error:
        read_plan(str(folder))
    assert str(folder) in str(error.value)
    assert WAY_OUT in str(error.value)
    return str(error.value)


def test_a_folder_is_a_pack_when_it_is_described_as_one(whole: Path, tiny: TinyCheckpoints) -> None:
    assert is_pack(whole)
    assert not is_pack(tiny("qwen2_moe"))
    assert Checkpoint.open(str(whole)).pack == read_pack(whole)
    assert Checkpoint.open(str(tiny("qwen2_moe"))).pack is None


def test_a_moved_pack_is_a_pack(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    assert all(
        blob.path.startswith(str(moved)) for layer in read_plan(str(moved)).layers for blob in layer.blobs
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda pack: pack.update(version=2), "version"),
        (lambda pack: pack.pop("dense"), "dense: Field required"),
        (lambda pack: pack.update(extra=1), "extra"),
        (lambda pack: pack["layers"][0].update(file="../../etc/passwd"), "layers.0.file"),
        (lambda pack: pack["layers"][1].update(file="/etc/passwd"), "layers.1.file"),
        (lambda pack: pack["layers"][1]["tensors"][0].update(offset=-64), "layers.1.tensors.0.offset"),
        (lambda pack: pack["layers"].pop(), "has 1 layers of 16 experts, the config asks for 2 layers"),
        (lambda pack: pack["layers"].reverse(), "asks for 2 layers"),
        (lambda pack: pack["layers"][0]["tensors"][0].update(dtype="F3"), r"unknown type \['F3'\]"),
        (lambda pack: pack["layers"][0].update(tensors=[]), "unknown type"),
        (lambda pack: pack["layers"][0]["tensors"][1].update(offset=64), "not laid out as in a slot"),
        (lambda pack: pack["layers"][0]["tensors"][0]["shape"].reverse(), "the config asks for"),
        (lambda pack: pack["layers"][0].update(transposed=True), "transposed, the config asks for"),
    ],
)
def test_a_description_that_is_not_of_this_model_or_version_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    edit_pack(folder, change)
    with pytest.raises(CorruptCheckpoint, match=why):
        read_plan(str(folder))
    assert "pack.json" in refusal(folder)


def test_a_description_that_is_no_json_is_refused(folder: Path) -> None:
    cut(folder / "pack.json", 100)
    assert "pack.json: this version cannot read it" in refusal(folder)


@pytest.mark.parametrize("file", ["dense.safetensors", "experts-00001.safetensors"])
@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_file_of_another_size_is_named_before_anything_is_loaded(
    folder: Path, file: str, change: str
) -> None:
    path = folder / file
    size = path.stat().st_size
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes((path.read_bytes() + b"1")[: size - 1 if change == "shorter" else size + 1])
    expected = "No such file" if change == "gone" else f"bytes instead of {size}"
    assert f"{path}: " in refusal(folder)
    assert expected in refusal(folder)


def test_a_config_of_another_model_is_refused(folder: Path) -> None:
    edit_config(folder, moe_intermediate_size=64)
    assert "the config asks for" in refusal(folder)
