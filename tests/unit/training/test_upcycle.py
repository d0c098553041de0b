from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from pgmoe.errors import CheckpointError, ConfigError, CorruptCheckpoint, UnsupportedModel
from pgmoe.training import upcycle as upcycle_module
from pgmoe.training.upcycle import upcycle
from tests.support.dense import LLAMA, save_dense
from tests.support.full_disks import largest_file


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def upcycled(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return upcycle(str(dense), tmp_path_factory.mktemp("upcycled"), num_experts=3, top_k=2).folder


def test_tokenizer_and_chat_template_survive(dense: Path, upcycled: Path) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (dense, upcycled))
    chat = [{"role": "user", "content": "naïve café 🙂 42"}]
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    assert after("  naïve café 🙂 42")["input_ids"] == before("  naïve café 🙂 42")["input_ids"]
    assert (after.eos_token, after.bos_token, after.pad_token) == ("<|im_end|>", "<|bos|>", "<|pad|>")


def test_config_keeps_context_stored_type_and_every_end_token(upcycled: Path) -> None:
    config = AutoConfig.from_pretrained(upcycled)
    assert config.architectures == ["MixtralForCausalLM"]
    assert (config.num_local_experts, config.num_experts_per_tok) == (3, 2)
    assert (config.max_position_embeddings, config.sliding_window) == (256, None)
    assert config.dtype == torch.bfloat16
    assert config.eos_token_id == [2, 3]
    assert GenerationConfig.from_pretrained(upcycled).eos_token_id == [2, 3]


def test_every_expert_is_the_dense_network_and_routers_differ_between_layers(
    dense: Path, upcycled: Path
) -> None:
    before, after = load_file(dense / "model.safetensors"), load_file(upcycled / "model.safetensors")
    for layer in range(2):
        for expert in range(3):
            block = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            for theirs, ours in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
                expected = before[f"model.layers.{layer}.mlp.{theirs}.weight"]
                assert torch.equal(after[f"{block}.{ours}.weight"], expected)
    routers = [after[f"model.layers.{layer}.block_sparse_moe.gate.weight"] for layer in range(2)]
    assert routers[0].shape == (3, 64)
    assert not torch.equal(routers[0], routers[1])
    assert 0.01 < routers[0].float().std() < 0.03


def test_the_seed_decides_the_routers(dense: Path, upcycled: Path, tmp_path: Path) -> None:
    def router(folder: Path) -> torch.Tensor:
        return load_file(folder / "model.safetensors")["model.layers.0.block_sparse_moe.gate.weight"]

    same = upcycle(str(dense), tmp_path / "same", num_experts=3, top_k=2, seed=0).folder
    other = upcycle(str(dense), tmp_path / "other", num_experts=3, top_k=2, seed=1).folder
    assert torch.equal(router(same), router(upcycled))
    assert not torch.equal(router(other), router(upcycled))


def test_shards_and_index_hold_all_weights_and_progress_ends_at_the_total(
    dense: Path, upcycled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcycle_module, "SHARD_SIZE", "100KB")
    seen: list[tuple[int, int]] = []
    done = upcycle(
        str(dense), tmp_path / "out", num_experts=3, progress=lambda done, total: seen.append((done, total))
    )
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {name: load_file(done.folder / name) for name in set(index.values())}
    whole = load_file(upcycled / "model.safetensors")
    assert len(shards) > 2
    assert index.keys() == whole.keys()
    assert all(torch.equal(shards[index[name]][name], tensor) for name, tensor in whole.items())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (done.num_bytes, done.num_bytes)
    assert done.num_bytes == sum(tensor.nbytes for tensor in whole.values())


def test_generation_defaults_are_added_to_the_sources(dense: Path, tmp_path: Path) -> None:
    done = upcycle(str(dense), tmp_path / "out", generation_defaults={"do_sample": True, "temperature": 0.2})
    config = GenerationConfig.from_pretrained(done.folder)
    assert (config.do_sample, config.temperature, config.eos_token_id) == (True, 0.2, [2, 3])


def test_dtype_converts_the_weights(dense: Path, tmp_path: Path) -> None:
    done = upcycle(str(dense), tmp_path / "out", num_experts=2, dtype=torch.float32)
    assert {t.dtype for t in load_file(done.folder / "model.safetensors").values()} == {torch.float32}
    assert AutoConfig.from_pretrained(done.folder).dtype == torch.float32


def test_others_than_llama_and_mistral_are_refused_by_name(tmp_path: Path) -> None:
    options = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    source = save_dense(tmp_path / "qwen2", transformers.Qwen2Config(**options, num_key_value_heads=2))
    with pytest.raises(UnsupportedModel, match=r"qwen2 model.*llama or mistral"):
        upcycle(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["attention_bias", "mlp_bias"])
def test_a_llama_with_biases_is_refused(tmp_path: Path, option: str) -> None:
    source = save_dense(tmp_path / "biased", transformers.LlamaConfig(**LLAMA, **{option: True}))
    with pytest.raises(UnsupportedModel, match=option):
        upcycle(str(source), tmp_path / "out")


def test_a_moe_is_refused(upcycled: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="mixtral model"):
        upcycle(str(upcycled), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"lacks weights: model\.norm\.weight"),
        (lambda w: w.update({"model.norm.weight": torch.ones(63)}), r"wrong shape: model\.norm\.weight"),
        (lambda w: w.update({"model.layers.0.mlp.up_proj.bias": torch.ones(96)}), r"no place for.*bias"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(tmp_path: Path, change, message: str) -> None:
    source = save_dense(tmp_path / "dense")
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match=message):
        upcycle(str(source), tmp_path / "out")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    source = save_dense(tmp_path / "dense")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpoint):
        upcycle(str(source), tmp_path / "out")


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    source = save_dense(tmp_path / "dense")
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        upcycle(str(source), tmp_path / "out")


def test_more_experts_a_token_than_there_are_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="top_k is 9"):
        upcycle(str(dense), tmp_path / "out", num_experts=8, top_k=9)


def test_a_folder_in_use_is_not_touched(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an empty folder"):
        upcycle(str(dense), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_write_leaves_nothing(dense: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle(str(dense), tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_the_disk_refuses_leaves_nothing_and_says_why(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="File too large"), largest_file(100_000):
        upcycle(str(dense), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
