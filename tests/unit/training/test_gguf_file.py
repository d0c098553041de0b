from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.training.dense_model import read_dense_model
from pgmoe.training.gguf_file import GgufFile


def write_gguf(path: Path, architecture: str = "llama", num_experts: int = 0) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_string("tokenizer.ggml.pre", "smollm")
    if num_experts:
        writer.add_expert_count(num_experts)
    writer.add_tensor("token_embd.weight", np.ones((64, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_says_what_the_file_is(tmp_path: Path) -> None:
    file = GgufFile.open(write_gguf(tmp_path / "moe.gguf", num_experts=4))
    assert (file.architecture, file.num_experts, file.pre_tokenizer) == ("llama", 4, "smollm")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CorruptCheckpoint, match=r"cut\.gguf is not a whole GGUF file"):
        GgufFile.open(tmp_path / "cut.gguf")


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello, this is plain text and not a model")
    with pytest.raises(CorruptCheckpoint):
        GgufFile.open(tmp_path / "x.gguf")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "gemma.gguf", architecture="gemma")
    with pytest.raises(UnsupportedModel, match="gemma model"):
        read_dense_model(str(file))


def test_a_gguf_with_experts_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "moe.gguf", num_experts=4)
    with pytest.raises(UnsupportedModel, match="4 experts already"):
        read_dense_model(str(tmp_path))


def test_a_folder_with_two_gguf_files_asks_which(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        read_dense_model(str(tmp_path))


@pytest.mark.parametrize("source", ["./no/such/model", "empty", "notes.txt"])
def test_a_path_that_is_no_model_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="model folder"):
        read_dense_model(str(tmp_path / source))
