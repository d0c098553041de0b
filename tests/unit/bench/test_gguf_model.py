from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgmoe.bench.gguf_model import write_gguf
from pgmoe.errors import UnsupportedModel
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.training.pregate import pregate
from tests.support.checkpoints import save_tiny

gguf: Any = pytest.importorskip("gguf")


def _stored(folder: Path, key: str) -> np.ndarray[Any, Any]:
    return Checkpoint.open(str(folder)).tensors[key][...].float().numpy()


def _written(path: Path) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def _values(tensor: Any, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    data = torch.from_numpy(np.array(tensor.data)).view(torch.uint8).view(dtype).float()
    return data.reshape(tuple(int(n) for n in reversed(tensor.shape))).numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_weight_is_the_checkpoints(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, path = tmp_path / "model", tmp_path / "made" / "model.gguf"
    save_tiny("olmoe", folder, dtype)
    write_gguf(str(folder), path, dtype)
    written = _written(path)
    assert len(written) == 3 + 3 * 12  # embeddings, last norm, output; a layer's attention, norms and experts
    same = [
        ("token_embd", "model.embed_tokens", dtype),
        ("output_norm", "model.norm", torch.float32),
        ("blk.1.attn_q", "model.layers.1.self_attn.q_proj", dtype),
        ("blk.2.attn_k_norm", "model.layers.2.self_attn.k_norm", torch.float32),
        ("blk.0.ffn_gate_inp", "model.layers.0.mlp.gate", torch.float32),
    ]
    for name, key, kind in same:
        np.testing.assert_array_equal(
            _values(written[f"{name}.weight"], kind), _stored(folder, f"{key}.weight"), err_msg=name
        )
    for ours, theirs in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        stacked = _values(written[f"blk.1.ffn_{ours}_exps.weight"], dtype)
        experts = [_stored(folder, f"model.layers.1.mlp.experts.{e}.{theirs}.weight") for e in range(16)]
        np.testing.assert_array_equal(stacked, np.stack(experts))


def test_queries_and_keys_of_mixtral_are_in_llama_cpps_order(tmp_path: Path) -> None:
    folder, path = tmp_path / "model", tmp_path / "model.gguf"
    save_tiny("mixtral", folder, torch.float32)
    write_gguf(str(folder), path, torch.float32)
    written = _written(path)
    for name, key, heads in (("q", "q_proj", 4), ("k", "k_proj", 2)):
        ours = _values(written[f"blk.0.attn_{name}.weight"], torch.float32)
        theirs = _stored(folder, f"model.layers.0.self_attn.{key}.weight")
        for head in range(heads):
            rows, half = theirs[head * 16 : (head + 1) * 16], 8
            for pair in range(half):  # transformers turns element i with i + half, llama.cpp 2i with 2i + 1
                np.testing.assert_array_equal(ours[head * 16 + 2 * pair], rows[pair])
                np.testing.assert_array_equal(ours[head * 16 + 2 * pair + 1], rows[pair + half])


def test_a_family_without_an_entry_is_refused(tmp_path: Path) -> None:
    save_tiny("qwen3_moe", tmp_path / "model", torch.float32)
    with pytest.raises(UnsupportedModel, match="only olmoe and mixtral models"):
        write_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", torch.float16)
    assert not (tmp_path / "model.gguf").exists()


def test_a_pre_gated_model_is_refused(tmp_path: Path) -> None:
    pregate(str(save_tiny("mixtral", tmp_path / "old", torch.float32)), tmp_path / "new")
    with pytest.raises(UnsupportedModel, match=r"is pre-gated, which llama\.cpp cannot"):
        write_gguf(str(tmp_path / "new"), tmp_path / "model.gguf", torch.float16)
