"""The device's memory and how prompts are cut, planned together: pure arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pgmoe.engine.memory_plan import ExpertShape, MemoryPlan, plan_memory
from pgmoe.engine.needs import Needs
from pgmoe.errors import BudgetTooSmall

LEAST_CHUNK = 512
"""Prompt tokens of a step where `prefill_chunk: auto` has no room for more."""
LARGER_CHUNKS = (2048, 1024)
"""What is tried, the largest first."""
SLOTS_FOR_CHUNK = 1 / 32
"""Of the expert slots, the share that a larger chunk may cost."""


def plan_device(
    device_memory: str | int,
    kv_memory: str | int,
    prefill_chunk: int | Literal["auto"],
    shape: ExpertShape,
    measure: Callable[[int], Needs],
) -> MemoryPlan:
    """See plan_memory, for the errors too; `measure` tells the needs with chunks of so many tokens.

    A prompt's chunk uses nearly every expert, however long it is; so each byte that moves should serve as
    many tokens as there is memory for. Nor does a CPU read for nothing what is there already: 1,020 tokens
    took 5.7 s in two chunks and 3.9 s in one (the default model, by hand, on two cores).
    """
    if prefill_chunk != "auto":
        return plan_memory(device_memory, kv_memory, shape, measure(prefill_chunk))
    plan = plan_memory(device_memory, kv_memory, shape, measure(LEAST_CHUNK))
    for chunk in LARGER_CHUNKS:
        if chunk < 2 * plan.longest:  # one that is twice as long as any prompt is like the next smaller one
            try:
                larger = plan_memory(device_memory, kv_memory, shape, measure(chunk))
            except BudgetTooSmall:
                continue
            kept = larger.num_slots >= plan.num_slots * (1 - SLOTS_FOR_CHUNK)
            if kept and (larger.kv_bytes, larger.longest) == (plan.kv_bytes, plan.longest):
                return larger
    return plan
