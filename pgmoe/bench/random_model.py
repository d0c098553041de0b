"""Checkpoints of random weights: a real architecture at a chosen size, where no trained one is to be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from pgmoe.new_folder import new_folder

SHARD_SIZE = "1GB"
SEED = 0


@dataclass(frozen=True)
class OlmoeShape:
    """The sizes of an OLMoE."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_experts: int
    top_k: int
    expert_width: int
    embedding_spread: float = 1.0
    """Standard deviation of the embeddings; see save_random_olmoe."""

    def config(self) -> OlmoeConfig:
        """transformers' configuration of this shape."""
        return OlmoeConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            intermediate_size=self.expert_width,
            num_experts=self.num_experts,
            num_experts_per_tok=self.top_k,
            max_position_embeddings=4096,
            pad_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )

    def text(self) -> str:
        """For reports."""
        return (
            f"random OLMoE, seed {SEED}: {self.num_layers} layers, width {self.width}, "
            f"{self.num_experts} experts of width {self.expert_width}, {self.top_k} per token, "
            f"vocabulary {self.vocab_size}, bfloat16, embeddings of spread {self.embedding_spread:g}"
        )


OLMOE_HALF = OlmoeShape(32000, 1024, 16, 16, 64, 8, 512)
"""3.5 GB: half of OLMoE-1B-7B's widths, for machines with little memory."""
OLMOE_FULL = OlmoeShape(50304, 2048, 16, 16, 64, 8, 1024)
"""13.8 GB: the shape of OLMoE-1B-7B."""


def save_random_olmoe(
    folder: Path,
    shape: OlmoeShape,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the checkpoint, drawing weights on `device`; `progress` gets (bytes drawn, bytes in all).

    Norms are 1, embeddings normal with the shape's spread, all else with the family's initial one, 0.02. With
    that for embeddings too, attention outweighs them, and every token of a context chooses nearly the same
    experts; with 1 a token's experts follow from the token, and a random stream has no locality.
    Raises ConfigError if `folder` is taken, or its disk too full.
    """
    config = shape.config()
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = OlmoeForCausalLM(config).bfloat16()
    parameters = list(model.parameters())
    total = sum(p.nbytes for p in parameters)
    with new_folder(folder, need_bytes=total) as partial, torch.no_grad():
        model.to_empty(device=device)
        embeddings = model.get_input_embeddings().weight
        generator = torch.Generator(device).manual_seed(SEED)
        done = 0
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                spread = shape.embedding_spread if parameter is embeddings else model.config.initializer_range
                parameter.normal_(std=spread, generator=generator)
            done += parameter.nbytes
            if progress is not None:
                progress(done, total)
        model.save_pretrained(partial, max_shard_size=SHARD_SIZE)
