"""What MoE-Lightning's closed form says of a model and a machine, for `pgmoe plan --offline`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from pgmoe.engine.hrm import HrmMachine, HrmModel, best_policy
from pgmoe.errors import ConfigError, UnsupportedModel
from pgmoe.models.loader import ModelPlan

PROMPT_TOKENS, ANSWER_TOKENS = 512, 128
LEAST_LAYERS = 3
"""The form streams weights through two layers' room."""
MOST = 1e18
"""Beyond any machine's figures."""


def offline_text(found: ModelPlan, machine_file: Path) -> str:
    """The best policy in words, for prompts of PROMPT_TOKENS and answers of ANSWER_TOKENS.

    Raises ConfigError for a file that is no HrmMachine, UnsupportedModel for a model that has not one kind of
    layer throughout.
    """
    policy = best_policy(_model(found), _machine(machine_file))
    task = f"prompts of {PROMPT_TOKENS} and answers of {ANSWER_TOKENS} tokens"
    if policy is None:
        return f"Offline, by MoE-Lightning's model: not one sequence fits ({task})."
    return (
        f"Offline, by MoE-Lightning's model, predicted for a system that streams whole layers and computes "
        f"attention on the CPU: {policy.num_micro_batches} micro-batches of {policy.micro_batch}, "
        f"{policy.weights_on_gpu:.1%} of the experts on the GPU, {policy.tokens_per_s:.0f} tokens/s ({task})."
    )


def _machine(path: Path) -> HrmMachine:
    names = sorted(field.name for field in fields(HrmMachine))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    numbers = isinstance(content, dict) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < MOST for v in content.values()
    )
    if not numbers or sorted(content) != names:
        raise ConfigError(
            f"{path}: give a JSON object of numbers above 0 and below {MOST:g} named {', '.join(names)}"
        )
    return HrmMachine(**content)


def _model(found: ModelPlan) -> HrmModel:
    config = found.config.get_text_config(decoder=True)
    layer = found.layers[0]
    num_layers = config.num_hidden_layers
    if found.config.is_encoder_decoder or len(found.layers) != num_layers or num_layers < LEAST_LAYERS:
        raise UnsupportedModel(
            f"{found.checkpoint.folder}: --offline is about decoders of {LEAST_LAYERS} layers or more, with "
            "experts in every one"
        )
    (down,) = (r.shape for r in layer.layout.regions if r.name == "down")
    return HrmModel(
        num_layers=num_layers,
        width=config.hidden_size,
        expert_width=down[0] * down[1] // config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        prompt_tokens=PROMPT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
    )
