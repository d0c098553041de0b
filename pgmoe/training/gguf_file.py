"""What a GGUF file says about itself that transformers does not carry over."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from pgmoe.errors import ConfigError, CorruptCheckpoint


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header was read and whose tensors all lie inside the file."""

    path: Path
    architecture: str
    """llama.cpp's name, e.g. `llama` (Mistral and Mixtral go by it too)."""
    num_experts: int
    """0 for a dense model."""
    pre_tokenizer: str | None
    """llama.cpp's name of how text is split before byte-pair merging."""

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header. Raises CorruptCheckpoint, or ConfigError where the gguf package is missing."""
        try:
            from gguf import GGUFReader
        except ImportError:
            message = f'{path}: reading GGUF needs the gguf package; pip install "pgmoe[demo]"'
            raise ConfigError(message) from None
        try:
            fields = GGUFReader(path).fields
        except (OSError, ValueError, IndexError, struct.error) as error:
            raise CorruptCheckpoint(f"{path} is not a whole GGUF file: {error}") from error

        def value(key: str) -> Any:
            return fields[key].contents() if key in fields else None

        architecture = value("general.architecture") or "unknown"
        return cls(
            path=path,
            architecture=architecture,
            num_experts=int(value(f"{architecture}.expert_count") or 0),
            pre_tokenizer=value("tokenizer.ggml.pre"),
        )

    def mend_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make `tokenizer`, as transformers built it from this file, split text as the model was trained.

        transformers gives every byte-level vocabulary GPT-2's splitting; SmolLM's also cuts between
        digits, which shows where blanks stand before a number.
        """
        if self.pre_tokenizer != "smollm":
            return
        backend: Any = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
