"""What a fine-tuning needs: tiny models of several families with a tokenizer, and Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from pgmoe.training.finetune_config import FinetuneConfig
from tests.support.chat_tokenizer import CORPUS, train_chat_tokenizer
from tests.support.checkpoints import tiny_config, tiny_model

DOCUMENTS = CORPUS.split("\n\n")
QUESTIONS = [f"How far is number {n}?" for n in range(12)]
ANSWERS = [f"It is {n} miles away." for n in range(12)]


def trainable_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model with the vocabulary of the chat tokenizer."""
    tokenizer = train_chat_tokenizer()
    config = tiny_config(family)
    config.vocab_size = len(tokenizer)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    return tiny_model(config, dtype)


def save_trainable(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write one with its tokenizer to `folder` and return that."""
    trainable_model(family, dtype).save_pretrained(folder)
    train_chat_tokenizer().save_pretrained(folder)
    return folder


def save_parquet(path: Path, **columns: Sequence[Any]) -> Path:
    """Write a file with these columns and return its path."""
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    return path


def save_pairs(path: Path) -> Path:
    """Prompts with completions."""
    return save_parquet(path, prompt=QUESTIONS, completion=ANSWERS)


def save_text(path: Path) -> Path:
    """Documents."""
    return save_parquet(path, text=DOCUMENTS)


def small_run(model: Path, data: Path, out: Path, **options: Any) -> FinetuneConfig:
    """A run of a second: six steps in float32 on the CPU, unless `options` say otherwise."""
    defaults: Mapping[str, Any] = {
        "length": 32,
        "batch_size": 4,
        "steps": 6,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "device": "cpu",
    }
    return FinetuneConfig(model=str(model), data=(data,), out=out, **{**defaults, **options})
