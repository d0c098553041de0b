"""The tokenizer of a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pgmoe.errors import CheckpointError

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "spiece.model", "vocab.json")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Load it, never running code from the folder; None if the folder has no tokenizer file.

    Raises CheckpointError if it has one that cannot be read.
    """
    if not any((folder / name).exists() for name in _FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of any type: tokenizers raises Exception itself
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded; copy its files again "
            f"({type(error).__name__}: {error})"
        ) from error
    return tokenizer
