"""Tiny random checkpoints of every served family, written as users' own are: config and safetensors.

Weights are redrawn with a spread at which routers really choose among all experts and answers vary from
token to token; a default initialisation leaves experts nearly tied and mostly repeats its input. Biases are
redrawn too, so that losing one shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from pgmoe.models.own_families import register
from pgmoe.models.smallthinker_config import SmallThinkerConfig
from tests.support.chat_tokenizer import train_chat_tokenizer

DECODER: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK: dict[str, Any] = {
    **DECODER,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
SMALL_SPREAD = 0.1  # of embeddings and biases, so that tokens and not biases decide
SPREAD = 0.15  # about 1 / sqrt(hidden_size): a layer adds as much as the residual holds
SEQ2SEQ_SPREAD = 0.5  # their tied output layer favours repeating the input; this outweighs it
SEQ2SEQ: dict[str, Any] = {"vocab_size": 128, "d_model": 32, "num_experts": 8}


def _mixtral() -> PretrainedConfig:
    return transformers.MixtralConfig(
        **DECODER, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2
    )


def _qwen2_moe() -> PretrainedConfig:
    return transformers.Qwen2MoeConfig(
        **DECODER,
        intermediate_size=96,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=4,
        mlp_only_layers=[0],
    )


def _qwen3_moe() -> PretrainedConfig:
    return transformers.Qwen3MoeConfig(
        **DECODER,
        intermediate_size=96,
        moe_intermediate_size=48,
        num_experts=16,
        num_experts_per_tok=4,
        head_dim=16,
    )


def _olmoe() -> PretrainedConfig:
    return transformers.OlmoeConfig(**DECODER, intermediate_size=48, num_experts=16, num_experts_per_tok=4)


def _gpt_oss() -> PretrainedConfig:
    return transformers.GptOssConfig(
        **DECODER,
        intermediate_size=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        head_dim=16,
        sliding_window=32,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def _deepseek_v2() -> PretrainedConfig:
    return transformers.DeepseekV2Config(**DEEPSEEK, head_dim=16)


def _deepseek_v3() -> PretrainedConfig:
    return transformers.DeepseekV3Config(**DEEPSEEK)


def _granitemoe() -> PretrainedConfig:
    return transformers.GraniteMoeConfig(
        **DECODER, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2
    )


def _phimoe() -> PretrainedConfig:
    return transformers.PhimoeConfig(
        **DECODER, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2
    )


def _ernie4_5_moe() -> PretrainedConfig:
    return transformers.Ernie4_5_MoeConfig(
        **DECODER,
        intermediate_size=96,
        moe_intermediate_size=48,
        moe_num_experts=8,
        moe_k=2,
        moe_layer_start_index=1,
    )


def _glm4_moe() -> PretrainedConfig:
    return transformers.Glm4MoeConfig(
        **DECODER,
        intermediate_size=96,
        moe_intermediate_size=48,
        n_routed_experts=8,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        head_dim=16,
    )


def _minimax() -> PretrainedConfig:
    # The default layer_types: full, linear, full.
    return transformers.MiniMaxConfig(
        **DECODER, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2, head_dim=16, block_size=8
    )


def _smallthinker() -> PretrainedConfig:
    # As the 21B model: layers without rotary positions see everything, the others a window.
    return SmallThinkerConfig(
        **DECODER,
        head_dim=16,
        moe_ffn_hidden_size=48,
        moe_num_primary_experts=8,
        moe_num_active_primary_experts=2,
        rope_layout=[0, 1, 1],
        sliding_window_layout=[0, 1, 1],
        sliding_window_size=32,
        tie_word_embeddings=False,
    )


def _switch_transformers() -> PretrainedConfig:
    # Equal depths: transformers' generate() fails with a decoder deeper than its encoder.
    return transformers.SwitchTransformersConfig(
        **SEQ2SEQ,
        d_kv=8,
        d_ff=64,
        num_heads=4,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        expert_capacity=3,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
    )


def _nllb_moe() -> PretrainedConfig:
    return transformers.NllbMoeConfig(
        **SEQ2SEQ,
        encoder_layers=4,
        decoder_layers=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        eos_token_id=3,  # the usual 2 also starts the decoder, whose first word is then often the last
        max_position_embeddings=128,
    )


_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "granitemoe": _granitemoe,
    "phimoe": _phimoe,
    "ernie4_5_moe": _ernie4_5_moe,
    "glm4_moe": _glm4_moe,
    "minimax": _minimax,
    "smallthinker": _smallthinker,
    "switch_transformers": _switch_transformers,
    "nllb_moe": _nllb_moe,
}
FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
ENCODER_DECODER_FAMILIES = ("switch_transformers", "nllb_moe")
EARLY_ROUTED_FAMILIES = ("smallthinker",)
"""Their routers read their layer's input."""


def tiny_config(family: str) -> PretrainedConfig:
    """A fresh config of a model of the family small enough for a test (below 1 MB)."""
    return _CONFIGS[family]()


def wide_config() -> PretrainedConfig:
    """A small Mixtral of widths that all kernels for CPUs take, as no tiny one is; in bfloat16 they do."""
    config = _mixtral()
    config.hidden_size, config.head_dim, config.sliding_window = 128, 32, 24
    return config


def wide_switch_config() -> PretrainedConfig:
    """The same of an encoder-decoder; its own attention has a bias, so they only look at prompts."""
    config = _CONFIGS["switch_transformers"]()
    config.d_kv = 32
    return config


def tiny_model(config: PretrainedConfig, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model of this config in eval mode with redrawn weights; `seed` decides all of them."""
    register()
    generator = torch.Generator().manual_seed(seed)
    mapping: Any = (
        transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if config.is_encoder_decoder
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    model: PreTrainedModel = mapping[type(config)]._from_config(config, dtype=dtype).eval()
    spread = SEQ2SEQ_SPREAD if config.is_encoder_decoder else SPREAD
    table = model.get_input_embeddings().weight
    embeddings = {name for name, p in model.named_parameters(remove_duplicate=False) if p is table}
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1 or name.endswith(("bias", "sinks")):
            scale = SMALL_SPREAD if name in embeddings or tensor.dim() == 1 else spread
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return model


def save_tiny(
    family: str, folder: Path, dtype: torch.dtype, seed: int = 0, max_shard_size: str = "1GB"
) -> Path:
    """Write a tiny checkpoint of the family to `folder` and return it.

    `max_shard_size="200KB"` gives several shards and their index for every family.
    """
    tiny_model(tiny_config(family), dtype, seed).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_tiny_chat(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str = "1GB",
    context: int = 512,
) -> Path:
    """Write a tiny Mixtral with a real tokenizer and chat template to `folder` and return it.

    Its answers are noise: any bytes, so often broken UTF-8. The context is in tokens.
    """
    tokenizer = train_chat_tokenizer()
    config = transformers.MixtralConfig(
        **{
            **DECODER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": context,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        intermediate_size=96,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    tiny_model(config, dtype, seed).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder
