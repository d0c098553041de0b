"""SmallThinker: a family that transformers does not have, built of transformers' parts.

A layer's router reads the layer's input, before norm and attention, so its experts are known one attention
ahead. Some layers have no rotary positions, some a sliding window. (Song et al. 2025, arXiv 2507.20984; the
published names and formulas.) Attention, masks and cache are those of SmolLM3, which mixes the same layers.
Shape letters: B batch, S sequence, N = B * S tokens, D model width, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SmolLM3ForCausalLM, SmolLM3Model, initialization
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.integrations.moe import use_experts_implementation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
from transformers.models.smollm3.modeling_smollm3 import (
    SmolLM3Attention,
    SmolLM3RMSNorm,
    SmolLM3RotaryEmbedding,
)

from pgmoe.models.early import Announce
from pgmoe.models.smallthinker_config import SmallThinkerConfig, check_served


def route(logits_NE: Tensor, top_k: int, *, softmax: bool) -> tuple[Tensor, Tensor]:
    """The experts of each token (N, K), by its largest logits, and their weights (N, K), which sum to one.

    Weights are in the logits' type: sigmoids computed in it, or a softmax computed in float32.
    """
    chosen_NK, id_NK = logits_NE.topk(top_k, dim=-1)
    if softmax:
        return id_NK, chosen_NK.softmax(-1, dtype=torch.float32).to(logits_NE.dtype)
    weight_NK = chosen_NK.sigmoid()
    return id_NK, weight_NK / weight_NK.sum(-1, keepdim=True)


class SmallThinkerRouter(nn.Module):
    """Chooses experts of its layer's input."""

    def __init__(self, config: SmallThinkerConfig) -> None:
        super().__init__()
        self.top_k = config.moe_num_active_primary_experts
        self.softmax = config.moe_primary_router_apply_softmax
        self.weight = nn.Parameter(torch.empty(config.moe_num_primary_experts, config.hidden_size))

    def forward(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """See route."""
        return route(functional.linear(hidden_ND, self.weight), self.top_k, softmax=self.softmax)


@use_experts_implementation  # again: transformers looks for these very words where a model's class is
class SmallThinkerExperts(Qwen3MoeExperts):
    """Fused; gated by ReLU, as the config has it."""


class SmallThinkerMoeBlock(nn.Module):
    """An EarlyBlock: first `choose`, then, after attention, the experts."""

    announce: Announce | None = None

    def __init__(self, config: SmallThinkerConfig) -> None:
        super().__init__()
        self.primary_router = SmallThinkerRouter(config)
        self.experts = SmallThinkerExperts(config)  # type: ignore[no-untyped-call]

    def choose(self, layer_input_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and weights, both (N, K)."""
        id_NK, weight_NK = self.primary_router(layer_input_BSD.flatten(0, 1))
        if self.announce is not None:
            self.announce(id_NK)
        return id_NK, weight_NK

    def forward(self, hidden_BSD: Tensor, id_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """The chosen experts' sum, (B, S, D)."""
        out: Tensor = self.experts(hidden_BSD.flatten(0, 1), id_NK, weight_NK)
        return out.view(hidden_BSD.shape)


class SmallThinkerDecoderLayer(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
    """Router, attention, experts."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = SmolLM3Attention(config, layer_idx)
        self.block_sparse_moe = SmallThinkerMoeBlock(config)
        self.input_layernorm = SmolLM3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = SmolLM3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **attention: Any) -> Tensor:
        """(B, S, D) to (B, S, D); `attention`: what SmolLM3Attention takes besides."""
        id_NK, weight_NK = self.block_sparse_moe.choose(hidden_states)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention)
        hidden_BSD = hidden_states + attended
        normed = self.post_attention_layernorm(hidden_BSD)
        out: Tensor = hidden_BSD + self.block_sparse_moe(normed, id_NK, weight_NK)
        return out


class SmallThinkerModel(SmolLM3Model):  # type: ignore[no-untyped-call]
    """SmolLM3's forward over layers of this family. Raises UnsupportedModel for one that is not served."""

    config_class = SmallThinkerConfig
    _no_split_modules = ["SmallThinkerDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SmallThinkerDecoderLayer,
        "attentions": SmolLM3Attention,
    }

    def __init__(self, config: Any) -> None:
        check_served(config)
        super(SmolLM3Model, self).__init__(config)  # SmolLM3's own would build its layers
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers = [SmallThinkerDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = SmolLM3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = SmolLM3RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.has_sliding_layers = "sliding_attention" in config.layer_types
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, SmallThinkerRouter | SmallThinkerExperts):
            for parameter in module.parameters(recurse=False):
                initialization.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class SmallThinkerForCausalLM(SmolLM3ForCausalLM):  # type: ignore[no-untyped-call]
    """With an output layer."""

    config_class = SmallThinkerConfig
    _no_split_modules = SmallThinkerModel._no_split_modules
    _can_record_outputs = SmallThinkerModel._can_record_outputs

    def __init__(self, config: Any) -> None:
        super(SmolLM3ForCausalLM, self).__init__(config)
        self.model = SmallThinkerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


def stored_experts() -> list[WeightConverter | WeightRenaming]:
    """Where checkpoints have what: the tensors of each expert apart."""
    return [
        WeightConverter(
            source_patterns=[".experts.*.gate.weight", ".experts.*.up.weight"],
            target_patterns=".experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns=".experts.*.down.weight",
            target_patterns=".experts.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ]
