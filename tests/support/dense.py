"""Tiny dense checkpoints to upcycle, with a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from tests.support.chat_tokenizer import train_chat_tokenizer
from tests.support.checkpoints import tiny_model

LLAMA: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}


def save_dense(
    folder: Path, config: PretrainedConfig | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a tiny dense model (a Llama if no config is given) and its tokenizer to `folder`; return it."""
    tiny_model(config or transformers.LlamaConfig(**LLAMA), dtype, seed).save_pretrained(folder)
    train_chat_tokenizer().save_pretrained(folder)
    return folder
