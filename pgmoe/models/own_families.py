"""Families that transformers does not have and pgmoe does, made known to transformers' own look-ups.

A checkpoint of theirs usually names code of its own, too (`auto_map`). That is never run: ours is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from pgmoe.models.smallthinker import SmallThinkerForCausalLM, stored_experts
from pgmoe.models.smallthinker_config import SmallThinkerConfig


@dataclass(frozen=True)
class OwnFamily:
    """What transformers has to know of a family."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    stored: Callable[[], list[WeightConverter | WeightRenaming]]
    """How checkpoints name and part the tensors of the model."""


OWN_FAMILIES = (OwnFamily(SmallThinkerConfig, SmallThinkerForCausalLM, stored_experts),)


def register() -> None:
    """Make known those that transformers does not have, or not yet. Doing it again changes nothing."""
    for family in OWN_FAMILIES:
        model_type = family.config.model_type
        if model_type in CONFIG_MAPPING:
            continue
        AutoModelForCausalLM.register(family.config, family.model)
        register_checkpoint_conversion_mapping(model_type, family.stored(), overwrite=True)
        AutoConfig.register(model_type, family.config)


def own_model_class(architecture: str) -> type[PreTrainedModel] | None:
    """Our class of this name, if there is one."""
    return next((f.model for f in OWN_FAMILIES if f.model.__name__ == architecture), None)
