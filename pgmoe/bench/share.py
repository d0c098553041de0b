"""What a share of the experts takes: slots, and memory."""

from __future__ import annotations

import math

import torch

from pgmoe.engine.memory_plan import ExpertShape
from pgmoe.errors import ConfigError
from pgmoe.models.loader import ModelPlan

BESIDE_WEIGHTS = 416 * 2**20
"""Bytes of a limit beside weights: interpreter and libraries (about 330 MB), KV cache, workspace. Ours takes
385 MiB; what more a limit has is a gift to engines that load less."""


def slots_at(plan: ModelPlan, share: float) -> int:
    """Slots that our engine makes of this share (per cent) on a CPU."""
    shape = ExpertShape.of(plan.layers, plan.loaded_bytes(torch.device("cpu")))
    return int(shape.expert_bytes * share / 100) // shape.slot_bytes


def memory_need(plan: ModelPlan, share: float) -> int:
    """Bytes that our engine needs on a CPU with this share of the experts in slots."""
    shape = ExpertShape.of(plan.layers, plan.dense_bytes)
    return plan.dense_bytes + int(shape.expert_bytes * share / 100) + BESIDE_WEIGHTS


def share_within(plan: ModelPlan, limit: float) -> float:
    """Per cent of the experts that our engine holds where it may take `limit` per cent of the weights' bytes.

    Rounded down to a tenth. Raises ConfigError where none fits.
    """
    weights = weight_bytes(plan)
    experts = weights - plan.dense_bytes
    share = math.floor((weights * limit / 100 - memory_need(plan, 0)) / experts * 1000) / 10
    if share <= 0:
        least = math.ceil(memory_need(plan, 1) / weights * 100)
        way_out = f"give {least}% or more of the weights" if least <= 100 else "measure a larger model"
        raise ConfigError(f"limit {limit:g}%: our engine needs {least}% of so small a model; {way_out}")
    return min(share, 100.0)


def weight_bytes(plan: ModelPlan) -> int:
    """Of the whole model, experts as they lie in slots."""
    return plan.dense_bytes + ExpertShape.of(plan.layers, plan.dense_bytes).expert_bytes
