"""A small Switch Transformer with random weights, of the paper's kind: every second layer is a MoE block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from pgmoe.new_folder import new_folder
from pgmoe.training.trainable import quiet

_SPARSE_STEP = 2
"""Without dense layers between, transformers computes no load-balance loss."""
_HEAD_WIDTH = 64
_BYTES_A_WEIGHT = 4
_BRANCH_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class SwitchSize:
    """Encoder and decoder are equally deep: transformers' `generate` fails for a deeper decoder."""

    d_model: int = 128
    """Divided into heads of 64, one at least."""
    d_ff: int = 256
    """Width of an expert, and of the dense layers between."""
    num_blocks: int = 4
    """MoE blocks of each stack; the highest level is one less."""
    num_experts: int = 8
    expert_capacity: int = 128
    """Tokens of a sequence that one expert takes; a sequence as long drops none."""

    def words(self) -> str:
        """For the conditions of a result."""
        return (
            f"d_model {self.d_model}, d_ff {self.d_ff}, {self.num_blocks * _SPARSE_STEP} layers a stack of "
            f"which {self.num_blocks} have {self.num_experts} experts, top-1"
        )


def switch_config(size: SwitchSize, tokenizer: PreTrainedTokenizerFast) -> SwitchTransformersConfig:
    """T5's ids: generation starts with padding. No dropout, no jitter: every epoch is the first or nearly."""
    config: Any = SwitchTransformersConfig  # its parameters are not all declared
    made: SwitchTransformersConfig = config(
        vocab_size=len(tokenizer),
        d_model=size.d_model,
        d_kv=_HEAD_WIDTH,
        d_ff=size.d_ff,
        num_heads=max(1, size.d_model // _HEAD_WIDTH),
        num_layers=size.num_blocks * _SPARSE_STEP,
        num_decoder_layers=size.num_blocks * _SPARSE_STEP,
        num_sparse_encoder_layers=size.num_blocks,
        num_sparse_decoder_layers=size.num_blocks,
        num_experts=size.num_experts,
        expert_capacity=size.expert_capacity,
        router_jitter_noise=0.0,
        router_aux_loss_coef=0.01,  # the Switch paper's
        dropout_rate=0.0,
        tie_word_embeddings=False,  # as in T5 1.1: a tied head is scaled down, and Adam's steps with it
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return made


def save_switch_model(
    size: SwitchSize, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int = 0
) -> int:
    """Write a checkpoint with its tokenizer; count its weights. Raises ConfigError if `folder` is taken."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        model = SwitchTransformersForConditionalGeneration(switch_config(size, tokenizer))
        _mend(model)
    num_weights = sum(weight.numel() for weight in model.parameters())
    with new_folder(folder, num_weights * _BYTES_A_WEIGHT) as partial, quiet():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return num_weights


@torch.no_grad()
def _mend(model: nn.Module) -> None:
    """Draw anew what transformers draws for Adafactor, whose steps grow with the weights; Adam's do not.

    T5 has its scale of attention in the query weights, which Adam's steps would soon outgrow: it is shared
    with the keys. What a layer adds is drawn so small that a token is not lost in the mean of all. Routers
    would make softmax all or nothing; wo is drawn as if d_ff were d_model.
    """
    for name, weight in model.named_parameters():
        spread = weight.shape[-1] ** -0.5
        if name.endswith(("Attention.q.weight", "Attention.k.weight")):
            nn.init.normal_(weight, std=spread * _HEAD_WIDTH**-0.25)
        elif name.endswith(("Attention.o.weight", "wo.weight")):
            nn.init.normal_(weight, std=spread * _BRANCH_SHARE)
        elif name.endswith(("router.classifier.weight", "wi.weight")) or name == "lm_head.weight":
            nn.init.normal_(weight, std=spread)
