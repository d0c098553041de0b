"""What an engine serves, in words and numbers."""

from __future__ import annotations

from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import Assembly
from pgmoe.engine.model_facts import ModelFacts
from pgmoe.request import ModelInfo


def model_info(config: EngineConfig, assembly: Assembly, facts: ModelFacts) -> ModelInfo:
    """Of an assembled model."""
    layers = assembly.loaded.layers
    return ModelInfo(
        name=config.name,
        architecture=type(assembly.loaded.model).__name__,
        device=str(assembly.device),
        dtype=str(assembly.dtype).removeprefix("torch."),
        num_moe_layers=len(layers),
        num_experts=max(layer.num_experts for layer in layers),
        top_k=max(layer.top_k for layer in layers),
        dense_bytes=assembly.loaded.loaded_bytes,
        expert_bytes=max(layer.layout.weight_bytes for layer in layers),
        num_slots=assembly.memory.num_slots,
        max_model_len=assembly.memory.longest,
        vocab_size=facts.vocab_size,
        is_encoder_decoder=facts.is_encoder_decoder,
    )
