"""Sparse upcycling: a dense model becomes a Mixture of Experts with the same function.

Komatsuzaki et al., "Sparse Upcycling" (arXiv 2212.05055): each expert starts as a copy of the dense
feed-forward network and the router is drawn anew. Mixtral's weights of the chosen experts sum to one, so
equal experts give back the dense layer's output whichever of them are chosen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import MixtralConfig, PretrainedConfig

from pgmoe.errors import ConfigError
from pgmoe.new_folder import check_new_folder, new_folder
from pgmoe.training.dense_model import DenseModel, read_dense_model

Edit = Callable[[str, torch.Tensor], torch.Tensor]
"""From a tensor's name in the checkpoint and what upcycling gives for it to what is written, alike in shape
and type."""
Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all."""

SHARD_SIZE = "500MB"  # bounds what is held beside the dense weights
ROUTER_SPREAD = 0.02
EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
CARRIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_dropout",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""Options that mean the same in the dense config and in Mixtral's."""


@dataclass(frozen=True)
class Upcycled:
    """What was written."""

    folder: Path
    num_bytes: int
    """Of all weights."""
    num_parameters: int
    dtype: torch.dtype


def upcycle(
    source: str,
    out: Path,
    *,
    num_experts: int = 8,
    top_k: int = 2,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    generation_defaults: Mapping[str, object] | None = None,
    edit: Edit = lambda _, tensor: tensor,
    config_entries: Mapping[str, object] | None = None,
    files: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Upcycled:
    """Write a Mixtral checkpoint of `source` to `out`: safetensors, config, tokenizer, chat template.

    `source` and `dtype` are as in `read_dense_model`, `seed` draws the routers, `generation_defaults` goes
    into generation_config.json beside what the source says there, `config_entries` into config.json; `edit`
    may change tensors as they are written, and `files` are copied into the folder. `out` must not exist or
    be empty; it appears only when it is complete. Besides the dense model, at most one shard is in memory.
    Raises ConfigError and the errors of `read_dense_model`.
    """
    if not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k is {top_k}; it must be between 1 and num_experts ({num_experts})")
    check_new_folder(out)
    dense = read_dense_model(source, dtype)
    config = mixtral_config(dense.config, num_experts, top_k, dense.dtype)
    for name, value in (config_entries or {}).items():
        setattr(config, name, value)
    tensors = _mixtral_tensors(dense, config, seed)
    split = split_torch_state_dict_into_shards(
        {name: tensor.to("meta") for name, tensor in tensors.items()}, max_shard_size=SHARD_SIZE
    )
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    with new_folder(out, num_bytes) as folder:
        _write_weights(folder, tensors, edit, split, num_bytes, progress)
        config.save_pretrained(folder)
        dense.tokenizer.save_pretrained(folder)
        # Not save_pretrained, which refuses what published models often have: an unused temperature.
        for option, value in (generation_defaults or {}).items():
            setattr(dense.generation_config, option, value)
        dense.generation_config.to_json_file(folder / "generation_config.json")
        for file in files:
            shutil.copyfile(file, folder / file.name)
    return Upcycled(out, num_bytes, sum(t.numel() for t in tensors.values()), dense.dtype)


def mixtral_config(
    dense: PretrainedConfig, num_experts: int, top_k: int, dtype: torch.dtype
) -> MixtralConfig:
    """The config under which Mixtral computes what `dense` computes."""
    return MixtralConfig(
        **{name: getattr(dense, name) for name in CARRIED},
        sliding_window=getattr(dense, "sliding_window", None),
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
        architectures=["MixtralForCausalLM"],
        dtype=dtype,
    )


def _mixtral_tensors(dense: DenseModel, config: MixtralConfig, seed: int) -> dict[str, torch.Tensor]:
    """All tensors by checkpoint name, experts last; those of a layer share the dense layer's memory."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: weight for name, weight in dense.weights.items() if ".mlp." not in name}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}.block_sparse_moe"
        router = torch.randn(config.num_local_experts, config.hidden_size, generator=generator)
        tensors[f"{block}.gate.weight"] = (router * ROUTER_SPREAD).to(dense.dtype)
        for expert in range(config.num_local_experts):
            for matrix, name in EXPERT_NAMES.items():
                weight = dense.weights[f"model.layers.{layer}.mlp.{matrix}.weight"]
                tensors[f"{block}.experts.{expert}.{name}.weight"] = weight
    return tensors


def _write_weights(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    edit: Edit,
    split: StateDictSplit,
    num_bytes: int,
    progress: Progress | None,
) -> None:
    """Write every shard and, if there are several, their index."""
    done = 0
    for filename, names in split.filename_to_tensors.items():
        # safetensors refuses tensors that share memory, hence the copies.
        shard = {
            name: edit(name, tensors[name]).clone(memory_format=torch.contiguous_format) for name in names
        }
        save_file(shard, folder / filename, metadata={"format": "pt"})
        (folder / filename).chmod(folder.stat().st_mode & 0o666)  # safetensors makes them private
        done += sum(tensor.nbytes for tensor in shard.values())
        if progress is not None:
            progress(done, num_bytes)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)
