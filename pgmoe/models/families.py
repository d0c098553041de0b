"""What differs between model families: how their experts are taken out, and where they plug in again."""

from __future__ import annotations

from collections.abc import Container

from transformers import PretrainedConfig, PreTrainedModel

from pgmoe.models.nllb_moe import empty_nllb_moe, nllb_moe_sockets
from pgmoe.models.socket import ExpertSocket, empty_fused, fused_sockets
from pgmoe.models.switch import empty_switch, note_tables, switch_sockets


def note_stored(config: PretrainedConfig, keys: Container[str]) -> None:
    """Note in a config what only the names of its checkpoint's tensors say. Before a model is built of it."""
    note_tables(config, keys)


def empty_experts(model: PreTrainedModel) -> None:
    """Take all routed experts out of a freshly built model. Doing it again changes nothing."""
    empty_fused(model)
    empty_switch(model)
    empty_nllb_moe(model)


def find_sockets(model: PreTrainedModel) -> list[ExpertSocket]:
    """The sockets of an emptied model, in execution order; none for a dense model."""
    return [*fused_sockets(model), *switch_sockets(model), *nllb_moe_sockets(model)]
