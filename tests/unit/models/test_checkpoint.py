from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.models.checkpoint import Checkpoint, resolve_folder
from pgmoe.models.loader import read_plan
from tests.conftest import TinyCheckpoints
from tests.support.damage import INDEX, WEIGHTS, add_code, cut, edit_config, edit_header, edit_index


@pytest.fixture
def folder(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    """A whole checkpoint in one file, to be damaged."""
    return shutil.copytree(tiny("mixtral"), tmp_path / "model")


@pytest.fixture
def sharded(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("mixtral", torch.float32, "200KB"), tmp_path / "model")


def refusal(folder: Path, kind: type[CheckpointError]) -> str:
    """The message with which this folder is refused, which always names the folder."""
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(str(folder))
    assert type(error.value) is kind
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("cases", [("mixtral", "1GB"), ("mixtral", "200KB"), ("nllb_moe", "200KB")])
def test_every_stored_tensor_is_read_as_it_was_written(tiny: TinyCheckpoints, cases: tuple[str, str]) -> None:
    folder = tiny(cases[0], torch.bfloat16, cases[1])
    expected = {k: t for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}
    stored = Checkpoint.open(str(folder)).tensors
    assert stored.keys() == expected.keys()
    for key, tensor in expected.items():
        assert stored[key].shape == tuple(tensor.shape)
        assert stored[key].dtype == tensor.dtype
        assert torch.equal(stored[key][...], tensor)


def test_stored_tensors_of_odd_shapes_are_read(folder: Path) -> None:
    odd = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
    }
    save_file(odd, folder / WEIGHTS)
    stored = Checkpoint.open(str(folder)).tensors
    for key, tensor in odd.items():
        assert torch.equal(stored[key][...], tensor)


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "~/pgmoe-missing", "missing", "a/b/c"])
def test_a_path_that_is_no_folder_is_named(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(model)


def test_a_tilde_stands_for_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Checkpoint.open("~/model").folder == folder


def test_a_hub_id_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="nobody/nothing: neither a local folder nor to be had from the hub"
    ):
        Checkpoint.open("nobody/nothing")


@pytest.mark.parametrize("weights", [True, False])
def test_weights_are_fetched_from_the_hub_only_by_who_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    patterns: list[str] = []

    def download(_: str, *, allow_patterns: list[str]) -> str:
        patterns.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("pgmoe.models.checkpoint.snapshot_download", download)
    assert resolve_folder("some/model", weights=weights) == tmp_path
    files = ["config.json", "tokenizer.json", "chat_template.jinja", "model-00001-of-00002.safetensors"]
    fetched = [any(fnmatch(file, pattern) for pattern in patterns) for file in files]
    assert fetched == [True, True, True, weights]


def test_a_folder_without_config_is_no_checkpoint(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json; give a Hugging Face checkpoint folder" in refusal(folder, CheckpointError)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "\xff"}', b"[]", b"null"])
def test_a_config_that_is_no_json_object_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder, CorruptCheckpoint)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "no *.safetensors file" in refusal(folder, CheckpointError)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert "convert them to safetensors" in refusal(folder, UnsupportedModel)


QUANTISED: dict[str, tuple[Any, str]] = {
    "another method": ({"quant_method": "gptq", "bits": 4}, "quantised by 'gptq'"),
    "no method": ({}, r"quantised by {}"),
    "no object": ("mxfp4", "quantised by 'mxfp4'"),
    "fp8 without blocks": ({"quant_method": "fp8"}, "weight_block_size None"),
    "fp8 in other blocks": (
        {"quant_method": "fp8", "weight_block_size": [1, 32]},
        r"weight_block_size [1, 32]",
    ),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_a_quantisation_that_is_not_served_is_named_with_those_that_are(folder: Path, case: str) -> None:
    entry, said = QUANTISED[case]
    edit_config(folder, quantization_config=entry)
    message = refusal(folder, UnsupportedModel)
    assert said in message
    assert "served are fp8 in blocks of 128 x 128, mxfp4, and float32" in message


def test_an_empty_quantisation_entry_means_none(folder: Path) -> None:
    edit_config(folder, quantization_config=None)
    assert Checkpoint.open(str(folder)).tensors


def test_weights_beside_the_usual_file_are_left_alone(folder: Path) -> None:
    before = Checkpoint.open(str(folder)).tensors.keys()
    save_file({"model.norm.weight": torch.zeros(64)}, folder / "zz-adapter.safetensors")
    save_file({"layers.0.attention.wq.weight": torch.zeros(64, 64)}, folder / "consolidated.safetensors")
    tensors = Checkpoint.open(str(folder)).tensors
    assert tensors.keys() == before
    assert {t.path for t in tensors.values()} == {str(folder / WEIGHTS)}


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 50_000, -4096, -1])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    cut(folder / WEIGHTS, keep)
    message = refusal(folder, CorruptCheckpoint)
    assert WEIGHTS in message
    assert "copy it again" in message


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    cut(shard, -1)
    assert shard.name in refusal(sharded, CorruptCheckpoint)


HEADER_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "length beyond the file": lambda b: b"\xff\xff\xff\xff\0\0\0\0" + b[8:],
    "length beyond all memory": lambda b: b"\xff" * 8 + b[8:],
    "length zero": lambda b: b"\0" * 8 + b[8:],
    "no JSON": lambda b: b[:8] + b"garbage!" + b[16:],
    "bytes after the last tensor": lambda b: b + b"more",
}


@pytest.mark.parametrize("damage", HEADER_DAMAGE)
def test_a_damaged_header_is_found(folder: Path, damage: str) -> None:
    path = folder / WEIGHTS
    path.write_bytes(HEADER_DAMAGE[damage](path.read_bytes()))
    assert "not a whole safetensors file" in refusal(folder, CorruptCheckpoint)


LIES: dict[str, dict[str, Any]] = {
    "offsets beyond the file": {"data_offsets": [10**9, 10**9 + 256]},
    "offsets over a neighbour": {"data_offsets": [0, 256]},
    "another shape": {"shape": [65]},
    "a shape too large to count": {"shape": [2**62, 2**62]},
    "a negative shape": {"shape": [-64]},
    "an unknown type": {"dtype": "X9"},
    "another type": {"dtype": "BF16"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_does_not_agree_with_the_file_is_found(folder: Path, lie: str) -> None:
    edit_header(folder, lambda header: header["model.norm.weight"].update(LIES[lie]))
    assert WEIGHTS in refusal(folder, CorruptCheckpoint)


def test_a_type_that_torch_lacks_is_refused(folder: Path) -> None:
    def shrink(header: dict[str, Any]) -> None:
        header["model.norm.weight"] |= {"dtype": "F4", "shape": [512]}

    edit_header(folder, shrink)
    assert "model.norm.weight has type F4" in refusal(folder, UnsupportedModel)


def test_missing_shards_are_counted_and_named(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    for shard in shards[1:3]:
        shard.unlink()
    assert f"missing 2 of {len(shards)} shards: {shards[1].name}, {shards[2].name}" in refusal(
        sharded, CorruptCheckpoint
    )


def test_a_tensor_of_the_index_that_no_shard_has_is_named(sharded: Path) -> None:
    edit_index(sharded, lambda weight_map: weight_map.update({"ghost.weight": min(weight_map.values())}))
    assert "1 tensors" in (message := refusal(sharded, CorruptCheckpoint))
    assert "ghost.weight" in message


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    assert INDEX in refusal(sharded, CorruptCheckpoint)


def test_a_shard_that_ends_while_it_is_read_is_named(folder: Path) -> None:
    stored = Checkpoint.open(str(folder)).tensors
    last = max(stored.values(), key=lambda t: t.offset)
    cut(folder / WEIGHTS, -1)
    with pytest.raises(CorruptCheckpoint, match=rf"{WEIGHTS}: ends inside tensor {last.key}"):
        last[...]


def test_code_in_a_checkpoint_is_never_run(folder: Path) -> None:
    ran, evil = add_code(folder)
    edit_config(folder, auto_map=evil)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": evil}))
    read_plan(str(folder))  # transformers has a Mixtral of its own
    assert not ran.exists()
    edit_config(folder, model_type="evil", architectures=["Evil"])
    with pytest.raises(UnsupportedModel, match="code from a checkpoint is never run"):
        read_plan(str(folder))
    assert not ran.exists()
