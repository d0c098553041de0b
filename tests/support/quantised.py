"""Tiny checkpoints in the two quantised formats, written as real ones are: values, scales, config.

The quantising is this module's own and simple. Its scales are spread over many sizes, and fp8's are no powers
of two, so that one that is lost, swapped or rounded shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.integrations import finegrained_fp8

from tests.support.checkpoints import tiny_config, tiny_model

BLOCK = 128
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP8_ENTRY: dict[str, Any] = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK],
}  # fmt: skip
MXFP4_ENTRY: dict[str, Any] = {
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    "quant_method": "mxfp4",
}
EVEN = {"hidden_size": 256, "moe_intermediate_size": 128, "intermediate_size": 256}
"""Sizes that are whole blocks or less than one; transformers dequantises no others on loading."""
ODD = {"hidden_size": 200, "moe_intermediate_size": 144, "intermediate_size": 328}
"""Sizes that end within a block."""

_FP8_KEYS = re.compile(r"(_proj|_proj_with_mqa|q_[ab]_proj|kv_b_proj|\.w[123])\.weight$")
_MXFP4_KEYS = re.compile(r"experts\.(gate_up|down)_proj$")
Quantise = Callable[[str, Tensor], dict[str, Tensor]]


def to_fp8(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """(values (R, C) float8_e4m3fn, scales (ceil(R / 128), ceil(C / 128)) float32)."""
    (rows, columns), weight_RC = weight_RC.shape, weight_RC.float()
    padded = functional.pad(weight_RC, (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # (r, 128, c, 128)
    scales_rc = blocks.abs().amax((1, 3)) / 448
    values = (blocks / scales_rc[:, None, :, None]).to(torch.float8_e4m3fn)
    return values.flatten(2).flatten(0, 1)[:rows, :columns].clone(), scales_rc


def to_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks (..., C / 32, 16) uint8, scales (..., C / 32) uint8) of weights (..., C)."""
    groups = weight.float().unflatten(-1, (-1, 32))
    exponents = groups.abs().amax(-1).log2().floor() - 2
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (scaled < 0)
    return (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8), (exponents + 127).to(torch.uint8)


def quantise_fp8(key: str, weight: Tensor) -> dict[str, Tensor]:
    """The tensors that stand for this one in an fp8 checkpoint: its linear layers and experts."""
    if not _FP8_KEYS.search(key):
        return {key: weight}
    values, scales = to_fp8(weight)
    return {key: values, f"{key}_scale_inv": scales}


def quantise_mxfp4(key: str, weight: Tensor) -> dict[str, Tensor]:
    """The same for gpt_oss, which quantises experts alone: (E, D, 2I) is stored as 2I rows."""
    if not _MXFP4_KEYS.search(key):
        return {key: weight}
    blocks, scales = to_mxfp4(weight.transpose(1, 2))
    return {f"{key}_blocks": blocks, f"{key}_scales": scales}


def quantised_config(family: str, **sizes: Any) -> PretrainedConfig:
    """The tiny config of a family, in bfloat16, with other sizes."""
    config = tiny_config(family)
    for name, size in sizes.items():
        setattr(config, name, size)
    config.dtype = torch.bfloat16
    return config


def save_quantised(
    config: PretrainedConfig,
    folder: Path,
    quantise: Quantise,
    entry: dict[str, Any],
    max_shard_size: str = "1GB",
) -> Path:
    """Write a tiny model of this config to `folder`, quantised, and return the folder."""
    tiny_model(config, torch.bfloat16).save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    for key, weight in load_file(folder / "model.safetensors").items():
        tensors |= quantise(key, weight)
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
    config_path = folder / "config.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | {"quantization_config": entry}))
    return folder


def _but_the_last_layer(key: str, weight: Tensor) -> dict[str, Tensor]:
    return {key: weight} if ".layers.2." in key else quantise_fp8(key, weight)


_WRITTEN: dict[str, tuple[str, dict[str, Any], Quantise, dict[str, Any]]] = {
    "fp8 deepseek even": ("deepseek_v3", EVEN, quantise_fp8, FP8_ENTRY),
    "fp8 deepseek odd": ("deepseek_v3", ODD, quantise_fp8, FP8_ENTRY),
    "fp8 deepseek in part": ("deepseek_v3", ODD, _but_the_last_layer, FP8_ENTRY),
    "fp8 qwen3": ("qwen3_moe", EVEN, quantise_fp8, FP8_ENTRY),
    "fp8 mixtral": ("mixtral", {"hidden_size": 200, "intermediate_size": 144}, quantise_fp8, FP8_ENTRY),
    "mxfp4 gpt_oss": ("gpt_oss", {}, quantise_mxfp4, MXFP4_ENTRY),
}
KINDS = tuple(_WRITTEN)
FP8_KINDS = tuple(kind for kind in KINDS if kind.startswith("fp8"))


def save_kind(kind: str, folder: Path, max_shard_size: str = "1GB") -> Path:
    """Write a tiny quantised checkpoint of one of `KINDS`. "100KB" gives several shards."""
    family, sizes, quantise, entry = _WRITTEN[kind]
    return save_quantised(quantised_config(family, **sizes), folder, quantise, entry, max_shard_size)


def save_dequantised(quantised: Path, folder: Path) -> Path:
    """Write an fp8 checkpoint's weights in bfloat16 to `folder`, by a function of transformers that also
    takes blocks which are cut short.
    """
    weights = {k: t for path in quantised.glob("*.safetensors") for k, t in load_file(path).items()}
    for key in [k for k in weights if k.endswith("_scale_inv")]:
        base, scales = key.removesuffix("_scale_inv"), weights.pop(key)
        whole = finegrained_fp8._dequantize_fp8_weight(weights[base], scales, [BLOCK, BLOCK], torch.float32)
        weights[base] = whole.to(torch.bfloat16)
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_torch_state_dict(weights, folder)
    return folder
