from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pgmoe.errors import CheckpointError, ConfigError, PgmoeError
from pgmoe.layout import LINE, PAGE
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.loader import read_plan
from pgmoe.models.pack import read_pack
from pgmoe.packing.pack import pack
from pgmoe.selftest import read_plainly
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import FAMILIES
from tests.support.damage import WEIGHTS, cut, edit_header
from tests.support.full_disks import largest_file
from tests.support.packs import contents, packed

CPU = torch.device("cpu")
IN_SHARDS = [(family, torch.bfloat16, "200KB") for family in FAMILIES]
IN_ONE_FILE = [(family, torch.float32, "1GB") for family in ("mixtral", "gpt_oss", "switch_transformers")]


@pytest.mark.parametrize(("family", "dtype", "shard_size"), IN_SHARDS + IN_ONE_FILE)
def test_every_tensor_is_in_the_pack_to_the_bit(
    tiny: TinyCheckpoints, tmp_path: Path, family: str, dtype: torch.dtype, shard_size: str
) -> None:
    model = tiny(family, dtype, shard_size)
    out = packed(model, tmp_path / "pack")
    source, description = read_plan(str(model)), json.loads((out / "pack.json").read_text())
    num_files = 0
    for layer, entry in zip(source.layers, description["layers"], strict=True):
        with safe_open(out / entry["file"], framework="pt") as file:  # as anyone reads it
            blobs = file.get_tensor("experts")
        assert len(blobs) == layer.num_experts
        for expert, blob in enumerate(blobs):
            expected = read_plainly(layer, expert, CPU)
            assert [t["name"] for t in entry["tensors"]] == list(expected)
            padding = torch.ones(len(blob), dtype=torch.bool)
            for tensor in entry["tensors"]:
                weights = expected[tensor["name"]]
                assert tuple(tensor["shape"]) == weights.shape
                place = slice(tensor["offset"], tensor["offset"] + weights.nbytes)
                assert torch.equal(blob[place], weights.contiguous().view(torch.uint8).flatten())
                padding[place] = False
            assert not blob[padding].any()
        num_files += 1
    stored = {k: t for path in model.glob("*.safetensors") for k, t in load_file(path).items()}
    dense = load_file(out / description["dense"]["file"])
    assert dense.keys() == set(source.dense_keys)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in dense.items())
    assert len(list(out.glob("*.safetensors"))) == num_files + 1


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nllb_moe"])
def test_the_plan_of_a_pack_is_that_of_its_model_with_smaller_slots(
    tiny: TinyCheckpoints, tmp_path: Path, family: str
) -> None:
    model = tiny(family, torch.bfloat16)
    out = packed(model, tmp_path / "pack")
    before, after = read_plan(str(model)), read_plan(str(out))
    assert after.config.to_diff_dict() == before.config.to_diff_dict()
    assert after.dense_bytes == before.dense_bytes
    assert after.loaded_bytes(CPU) == before.loaded_bytes(CPU)
    for old, new in zip(before.layers, after.layers, strict=True):
        assert (new.name, new.top_k, new.encoding, new.num_experts) == (
            old.name, old.top_k, old.encoding, old.num_experts,
        )  # fmt: skip
        assert new.ffn.transposed == old.ffn.transposed
        assert new.layout.weight_bytes == old.layout.weight_bytes
        assert new.layout.slot_bytes < old.layout.slot_bytes
        assert all(region.offset % LINE == 0 for region in new.layout.regions)
        for expert, blob in enumerate(new.blobs):
            assert blob.offset % PAGE == 0
            assert blob.nbytes == new.layout.slot_bytes
            for name, tensor in read_plainly(old, expert, CPU).items():
                assert torch.equal(read_plainly(new, expert, CPU)[name], tensor)


def test_what_lies_beside_the_weights_comes_along_and_nothing_else(tiny_chat: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_chat, tmp_path / "model")
    (model / "evil.py").write_text("open('/ran', 'w')")
    out = packed(model, tmp_path / "pack")
    theirs, ours = contents(model), contents(out)
    carried = set(theirs) - {"evil.py", WEIGHTS}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= carried
    assert {name: ours[name] for name in carried} == {name: theirs[name] for name in carried}
    own = {"pack.json", "dense.safetensors", *(f"experts-{i:05}.safetensors" for i in range(3))}
    assert set(ours) == carried | own


def test_the_description_names_the_source_and_no_place_on_this_machine(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    model = tiny("mixtral")
    out = packed(model, tmp_path / "pack")
    found = read_pack(out)
    assert found.version == 1
    assert found.source.name == model.name
    assert found.source.files == {WEIGHTS: (model / WEIGHTS).stat().st_size}
    assert str(tmp_path) not in (out / "pack.json").read_text()
    assert str(model.parent) not in (out / "pack.json").read_text()


def test_progress_is_told_up_to_the_size_of_the_weight_files(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = pack(str(tiny("mixtral")), tmp_path / "pack", progress=lambda *sizes: told.append(sizes))
    size = sum(path.stat().st_size for path in (tmp_path / "pack").glob("*.safetensors"))
    assert done.num_bytes == size
    assert [total for _, total in told] == [size] * len(told)
    assert told[-1][0] == size
    assert sorted(told) == told
    assert len(told) > done.num_experts


def test_a_pack_is_not_packed_again(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = packed(tiny("mixtral"), tmp_path / "pack")
    with pytest.raises(ConfigError, match=f"{out} is a pack already"):
        pack(str(out), tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_folder_with_something_in_it_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("1")
    with pytest.raises(ConfigError, match=f"{tmp_path} exists and is not an empty folder"):
        pack("/no/such/model", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_too_little_disk_is_told_before_anything_is_written(
    tiny: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("pgmoe.new_folder.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"pack needs 2.0 MiB, and its disk has 1000 B free"):
        pack(str(tiny("mixtral")), tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [20_000, 400_000], ids=["dense weights", "experts"])
def test_a_refused_write_leaves_nothing_that_looks_whole_and_is_gone_on_from(
    tiny: TinyCheckpoints, tmp_path: Path, room: int
) -> None:
    model, out = tiny("mixtral"), tmp_path / "pack"
    expected = contents(packed(model, tmp_path / "expected"))
    assert len(expected["dense.safetensors"]) < 400_000 < len(expected["experts-00000.safetensors"])
    with pytest.raises(ConfigError, match=f"cannot write {out}: File too large; "), largest_file(room):
        pack(str(model), out)
    assert not out.exists()
    assert not list(tmp_path.rglob(".*/**/pack.json"))
    assert contents(packed(model, out)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "pack"]


def test_a_model_that_changes_meanwhile_is_not_packed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = shutil.copytree(tiny("mixtral"), tmp_path / "model")

    def touch(done: int, total: int) -> None:
        if done == total:
            (model / "config.json").write_text((model / "config.json").read_text() + " ")

    with pytest.raises(ConfigError, match=f"{model} has changed while it was packed"):
        pack(str(model), tmp_path / "pack", progress=touch)
    assert not (tmp_path / "pack").exists()
    assert Checkpoint.open(str(packed(model, tmp_path / "pack"))).pack is not None


@pytest.mark.parametrize(
    ("part", "error"),
    [("dense weights", "ends inside tensor"), ("experts", r"expert 0 of model\.layers\.0.* too early")],
)
def test_a_model_that_cannot_be_read_to_its_end_is_named(
    tiny: TinyCheckpoints, tmp_path: Path, part: str, error: str
) -> None:
    model = shutil.copytree(tiny("mixtral"), tmp_path / "model")
    begin = 0 if part == "dense weights" else pack(str(model), tmp_path / "whole").dense_bytes

    def damage(done: int, total: int) -> None:
        if done >= begin:
            cut(model / WEIGHTS, 1000)

    with pytest.raises(PgmoeError, match=error) as caught:
        pack(str(model), tmp_path / "pack", progress=damage)
    assert str(model / WEIGHTS) in str(caught.value)
    assert not (tmp_path / "pack").exists()


def test_tensors_at_odd_places_of_the_file_are_packed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = shutil.copytree(tiny("mixtral", torch.bfloat16), tmp_path / "model")

    edit_header(model, lambda header: header.update(__metadata__={"format": "pt!"}))
    data = (model / WEIGHTS).read_bytes()
    assert int.from_bytes(data[:8], "little") % 2, "the header's length is even: choose another metadata"
    out = packed(model, tmp_path / "pack")
    expected = load_file(model / WEIGHTS)
    dense = load_file(out / "dense.safetensors")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in dense.items())
    for old, new in zip(read_plan(str(model)).layers, read_plan(str(out)).layers, strict=True):
        for name, tensor in read_plainly(old, 3, CPU).items():
            assert torch.equal(read_plainly(new, 3, CPU)[name], tensor)


def test_a_missing_file_of_the_model_is_the_error_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        pack(str(tmp_path / "nothing"), tmp_path / "pack")
