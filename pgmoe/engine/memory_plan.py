"""How the memory budgets become slots: pure arithmetic on sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pgmoe.errors import BudgetTooSmall, ConfigError
from pgmoe.layout import ExpertLayer
from pgmoe.units import format_bytes, parse_bytes

HOST_SHARE = 0.8
"""Of the free RAM, what `host_memory: auto` may take."""


@dataclass(frozen=True)
class ExpertShape:
    """The sizes of a model that a plan needs."""

    num_experts: int
    """Of all layers together."""
    slot_bytes: int
    """One expert in its slot, page padding included."""
    top_k: int
    """The most experts that one token uses in one layer."""
    dense_bytes: int

    @classmethod
    def of(cls, layers: Sequence[ExpertLayer], dense_bytes: int) -> ExpertShape:
        """The sizes of a loaded model."""
        return cls(
            num_experts=sum(layer.num_experts for layer in layers),
            slot_bytes=max(layer.layout.slot_bytes for layer in layers),
            top_k=max(layer.top_k for layer in layers),
            dense_bytes=dense_bytes,
        )

    @property
    def expert_bytes(self) -> int:
        """All experts, in slots."""
        return self.num_experts * self.slot_bytes

    @property
    def smallest_bytes(self) -> int:
        """The smallest `device_memory` that works: dense weights and one token's experts of one layer."""
        return self.dense_bytes + self.top_k * self.slot_bytes


def plan_slots(device_memory: str | int, shape: ExpertShape) -> int:
    """Expert slots that this `device_memory` buys; all experts at most.

    A number of bytes covers dense weights and slots; a percentage is that share of the experts. Raises
    BudgetTooSmall below `top_k` slots, ConfigError for a malformed budget.
    """
    if isinstance(device_memory, str) and device_memory.strip().endswith("%"):
        share = parse_bytes(device_memory, whole_bytes=shape.expert_bytes)
        slots = share // shape.slot_bytes
    else:
        slots = max(0, parse_bytes(device_memory) - shape.dense_bytes) // shape.slot_bytes
    if slots < shape.top_k:
        mib = math.ceil(shape.smallest_bytes / 2**20)
        raise BudgetTooSmall(
            f"device_memory {device_memory!r} has room for {slots} experts, but a token uses {shape.top_k} "
            f"in a layer; the smallest that works is {mib}MiB "
            f"({format_bytes(shape.dense_bytes)} dense weights and {shape.top_k} experts of "
            f"{format_bytes(shape.slot_bytes)}), or {_percent(shape.top_k, shape)}% of the experts",
            minimum_bytes=shape.smallest_bytes,
        )
    return min(slots, shape.num_experts)


def plan_host_experts(host_memory: str | int, shape: ExpertShape, *, accelerator: bool, free_ram: int) -> int:
    """How many experts this `host_memory` keeps in RAM between disk and device; all at most.

    `auto` is what a share of the free RAM holds on an accelerator, and none on a CPU, whose slots are RAM
    themselves. Raises BudgetTooSmall for a budget that holds no expert but is not 0, ConfigError for a
    malformed one or one that takes more than the free RAM.
    """
    if host_memory == "auto":
        return min(int(free_ram * HOST_SHARE) // shape.slot_bytes, shape.num_experts) if accelerator else 0
    budget = parse_bytes(host_memory, whole_bytes=shape.expert_bytes)
    held = min(budget // shape.slot_bytes, shape.num_experts)
    if budget and not held:
        raise BudgetTooSmall(
            f"host_memory {host_memory!r} holds no expert; the smallest that holds one of "
            f"{format_bytes(shape.slot_bytes)} is {math.ceil(shape.slot_bytes / 2**20)}MiB, or "
            f"{_percent(1, shape)}% of the experts; give 0 to read them all from disk",
            minimum_bytes=shape.slot_bytes,
        )
    if held * shape.slot_bytes > free_ram:
        raise ConfigError(
            f"host_memory {host_memory!r}: {held} experts take {format_bytes(held * shape.slot_bytes)}, and "
            f"{format_bytes(free_ram)} of RAM are free; give less, or 0 to read experts from disk"
        )
    return held


def _percent(num_experts: int, shape: ExpertShape) -> float:
    """The smallest percentage of the experts, to one decimal place, that holds so many."""
    return math.ceil(1000 * num_experts / shape.num_experts) / 10
