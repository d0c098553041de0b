"""A checkpoint as a GGUF file: the same weights for llama.cpp."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pgmoe.errors import ConfigError, UnsupportedModel
from pgmoe.models.checkpoint import Checkpoint, StoredTensor
from pgmoe.pre_gating import SECTION

if TYPE_CHECKING:
    from gguf import GGUFWriter, TensorNameMap

_GGML_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)(\.\w+)")
_QUERY_OR_KEY = re.compile(r"blk\.\d+\.attn_(q|k)")


@dataclass(frozen=True)
class _Family:
    architecture: str
    """llama.cpp's name."""
    experts_key: str
    """The config's name for the number of experts."""
    permuted: bool
    """Whether llama.cpp rotates neighbouring elements of queries and keys; transformers rotates halves."""


_FAMILIES = {
    "olmoe": _Family("olmoe", "num_experts", permuted=False),
    "mixtral": _Family("llama", "num_local_experts", permuted=True),
}


@dataclass(frozen=True)
class _Target:
    """One tensor of the GGUF file: a stored one, or those of all experts one after another."""

    name: str
    sources: tuple[StoredTensor, ...]
    stacked: bool
    dtype: torch.dtype
    heads: int
    """Of queries or keys whose elements change places; 0: as they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The outermost dimension first, as numpy and torch have it."""
        return (len(self.sources), *self.sources[0].shape) if self.stacked else self.sources[0].shape

    def data(self) -> np.ndarray[Any, Any]:
        """The tensor's bytes (..., row bytes)."""
        parts = [self._permuted(source[...]).to(self.dtype) for source in self.sources]
        whole = torch.stack(parts) if self.stacked else parts[0]
        return whole.contiguous().view(torch.uint8).numpy()

    def _permuted(self, weights: Tensor) -> Tensor:
        if not self.heads:
            return weights
        halves = weights.view(self.heads, 2, -1, *weights.shape[1:])
        return halves.transpose(1, 2).reshape(weights.shape)


def write_gguf(model: str, path: Path, dtype: torch.dtype) -> None:
    """Write the weights as `dtype` (float16 or bfloat16); norms and routers as float32, as llama.cpp does.

    The vocabulary is made up, token 7 reads `<7>`: prompts are to be given as token ids. A file
    half written is never left at `path`. Raises UnsupportedModel for a family not known here, ConfigError
    without the gguf package.
    """
    try:
        from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
    except ImportError:
        raise ConfigError('writing GGUF needs the gguf package; pip install "pgmoe[peers]"') from None
    checkpoint = Checkpoint.open(model)
    if SECTION in checkpoint.config:
        raise UnsupportedModel(
            f"{model} is pre-gated, which llama.cpp cannot compute; name its conventional twin, or measure "
            "without peers (--no-peers)"
        )
    family = _FAMILIES.get(checkpoint.config.get("model_type", ""))
    if family is None:
        raise UnsupportedModel(
            f"{model}: only {' and '.join(_FAMILIES)} models are written as GGUF, which "
            "llama.cpp needs; --no-peers measures without it"
        )
    (architecture,) = (a for a, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = get_tensor_name_map(architecture, checkpoint.config["num_hidden_layers"])
    targets = _targets(checkpoint, family, names, dtype)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(partial, family.architecture)
    try:
        _describe(writer, checkpoint.config, family)
        for target in targets:
            size = target.dtype.itemsize
            row = (*target.shape[:-1], target.shape[-1] * size)
            kind = GGMLQuantizationType[_GGML_TYPES[target.dtype]]
            writer.add_tensor_info(target.name, row, np.dtype(np.uint8), int(np.prod(row)), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for target in targets:
            writer.write_tensor_data(target.data())
        writer.close()
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _targets(
    checkpoint: Checkpoint, family: _Family, names: TensorNameMap, dtype: torch.dtype
) -> list[_Target]:
    groups: dict[str, dict[int, StoredTensor]] = defaultdict(dict)
    for key, stored in checkpoint.tensors.items():
        base = key.removesuffix(".weight")
        expert = _EXPERT.fullmatch(base)
        groups[expert[1] + expert[3] if expert else base][int(expert[2]) if expert else -1] = stored
    config = checkpoint.config
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    targets = []
    for base, group in groups.items():
        name = names.get_name(base)
        if name is None:
            raise UnsupportedModel(f"{checkpoint.folder}: GGUF has no name for {base}")
        turned = _QUERY_OR_KEY.fullmatch(name) if family.permuted else None
        sources = tuple(group[index] for index in sorted(group))
        small = len(sources[0].shape) == 1 or name.endswith("ffn_gate_inp")
        kept = torch.float32 if small else dtype
        targets.append(
            _Target(f"{name}.weight", sources, -1 not in group, kept, heads[turned[1]] if turned else 0)
        )
    return targets


def _describe(writer: GGUFWriter, config: dict[str, Any], family: _Family) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_count(config[family.experts_key])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    size = config["vocab_size"]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{index}>" for index in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([1] * size)  # normal: each is printed as it stands
