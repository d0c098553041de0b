"""What the memory budgets are divided into: pure arithmetic on sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pgmoe.engine.kv_size import KvSize
from pgmoe.engine.needs import Needs, RunningBytes
from pgmoe.errors import BudgetTooSmall, ConfigError
from pgmoe.kv.pool import LayerShape
from pgmoe.layout import ExpertLayer
from pgmoe.units import format_bytes, parse_bytes

KV_SHARE = Fraction(1, 4)
"""Of what the necessary leaves of a budget, what `kv_memory: auto` may take."""
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
        """Weights that have to be on the device: dense ones and one token's experts of one layer."""
        return self.dense_bytes + self.top_k * self.slot_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """What the device's memory is for, in bytes."""

    budget_bytes: int | None
    """What all of it together stays within; None where `device_memory` is a share of the experts."""
    dense_bytes: int
    kv_bytes: int
    """Of the pool of keys and values; requests wait, or are computed anew later, when it is in use."""
    workspace_bytes: int
    slot_bytes: int
    """Of one slot."""
    num_slots: int
    num_experts: int
    kv: KvSize
    kv_shapes: tuple[LayerShape, ...] | None
    """What each layer keeps of a token in a pool for all; None where each sequence has a cache of its own."""
    max_running: int
    prefill_chunk: int
    """Most prompt tokens of a step."""
    longest: int
    """Tokens of the longest sequence that is served, prompt and answer."""
    limits_length: bool
    """Whether that is for want of memory."""

    @property
    def slots_bytes(self) -> int:
        """Of all slots."""
        return self.num_slots * self.slot_bytes

    @property
    def total_bytes(self) -> int:
        """Of everything together."""
        return self.dense_bytes + self.kv_bytes + self.workspace_bytes + self.slots_bytes

    @property
    def paged(self) -> bool:
        """Whether blocks are really blocks of a pool; else they count what sequences' own caches take."""
        return self.kv_shapes is not None

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self.kv_bytes // self.kv.block_bytes

    def check_room(self, free_ram: int) -> None:
        """Raise ConfigError if RAM, which is the device, has less than what is taken at the start."""
        at_once = self.dense_bytes + self.slots_bytes
        if at_once > free_ram:
            raise ConfigError(
                f"dense weights of {format_bytes(self.dense_bytes)} and {self.num_slots} expert slots of "
                f"{format_bytes(self.slots_bytes)} take more than the {format_bytes(free_ram)} of RAM that "
                "are free; give a smaller device_memory"
            )

    def rows(self) -> tuple[tuple[str, int, str], ...]:
        """(what, bytes, remark): the plan as a table."""
        each = self.kv.tokens_in(self.kv_bytes // self.max_running, self.longest)
        kv_use = f"{self.num_blocks} blocks, for {self.max_running} sequences of {each} tokens"
        return (
            ("dense weights", self.dense_bytes, ""),
            ("KV cache", self.kv_bytes, kv_use),
            ("workspace", self.workspace_bytes, self._steps()),
            ("expert slots", self.slots_bytes, f"{self.num_slots} of {self.num_experts} experts"),
            ("together", self.total_bytes, self._budget()),
        )

    def text(self) -> str:
        """The plan for the log, a line for each part."""
        return "\n".join(
            f"  {what:<14}{format_bytes(size):>10}  {remark}".rstrip() for what, size, remark in self.rows()
        )

    def _steps(self) -> str:
        return f"sequences of up to {self.longest} tokens, prompts {self.prefill_chunk} at once"

    def _budget(self) -> str:
        if self.budget_bytes is None:
            return "device_memory is a share of the experts"
        return f"of device_memory {format_bytes(self.budget_bytes)}"


def plan_memory(
    device_memory: str | int, kv_memory: str | int, shape: ExpertShape, needs: Needs
) -> MemoryPlan:
    """Divide the device's memory.

    A number of bytes covers dense weights, KV cache, workspace and slots. A percentage is slots for that
    share of the experts, with everything else beside it. `kv_memory` is a number of bytes or `auto`: beside a
    percentage, the KV cache is then what the usual use takes; within a number of bytes it is the first of
    `needs.levels()` that takes at most KV_SHARE of what dense weights, workspace and one token's experts
    leave, or the last.

    Raises BudgetTooSmall, with the smallest that works, or ConfigError for a malformed budget.
    """
    share = isinstance(device_memory, str) and device_memory.strip().endswith("%")
    budget = None if share else parse_bytes(device_memory)
    limited = budget is not None or kv_memory != "auto"
    if kv_memory != "auto":
        running = needs.within(kv_memory)
    elif budget is None:
        running = needs.unlimited()
    else:
        running = _affordable(budget, shape, needs)
    if budget is None:
        room = parse_bytes(device_memory, whole_bytes=shape.expert_bytes)
    else:
        room = max(0, budget - shape.dense_bytes - running.total_bytes)
    slots = room // shape.slot_bytes
    if slots < shape.top_k:
        raise _too_small(device_memory, slots, shape, running if limited else list(needs.levels())[-1])
    return MemoryPlan(
        budget_bytes=budget,
        dense_bytes=shape.dense_bytes,
        kv_bytes=running.kv_bytes,
        workspace_bytes=running.workspace_bytes,
        slot_bytes=shape.slot_bytes,
        num_slots=min(slots, shape.num_experts),
        num_experts=shape.num_experts,
        kv=needs.kv,
        kv_shapes=needs.shapes,
        max_running=needs.max_running,
        prefill_chunk=needs.prefill_chunk,
        longest=running.longest,
        limits_length=running.longest < needs.max_model_len,
    )


def smallest_budget(shape: ExpertShape, needs: Needs) -> int:
    """The smallest `device_memory` in bytes that works, with `kv_memory: auto`."""
    return shape.smallest_bytes + list(needs.levels())[-1].total_bytes


def _affordable(budget: int, shape: ExpertShape, needs: Needs) -> RunningBytes:
    running = None
    for running in needs.levels():
        left = budget - shape.smallest_bytes - running.workspace_bytes
        if running.kv_bytes <= KV_SHARE * left:
            break
    assert running is not None
    return running


def _too_small(
    device_memory: str | int, slots: int, shape: ExpertShape, running: RunningBytes
) -> BudgetTooSmall:
    minimum = shape.smallest_bytes + running.total_bytes
    return BudgetTooSmall(
        f"device_memory {device_memory!r} has room for {slots} experts, but a token uses {shape.top_k} "
        f"in a layer; the smallest that works is {math.ceil(minimum / 2**20)}MiB "
        f"({format_bytes(shape.dense_bytes)} dense weights, {format_bytes(running.kv_bytes)} KV cache, "
        f"{format_bytes(running.workspace_bytes)} workspace and {shape.top_k} experts of "
        f"{format_bytes(shape.slot_bytes)}), or {_percent(shape.top_k, shape)}% of the experts",
        minimum_bytes=minimum,
    )


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
