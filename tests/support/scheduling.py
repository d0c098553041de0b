"""A scheduler in tests: small, and driven step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgmoe.engine.schedule import Chunk, NewSequence, SchedulerLimits, SchedulerOutput
from pgmoe.engine.scheduler import Prefer, Scheduler

ANY = 1_000
"""More tokens than any prompt here has."""


def scheduler_with(
    *,
    num_blocks: int = 64,
    swap_pays: Callable[[int], bool] = lambda num_tokens: False,
    prefer: Prefer | None = None,
    **limits: Any,
) -> Scheduler:
    """Four places, eight that wait, blocks of four tokens."""
    defaults = {"max_running": 4, "max_waiting": 8, "block_tokens": 4}
    all_limits = SchedulerLimits(**defaults | {"num_blocks": num_blocks} | limits)
    return Scheduler(all_limits, swap_pays=swap_pays, prefer=prefer)


def add(scheduler: Scheduler, name: str, num_tokens: int = 1, **fields: Any) -> None:
    """A prompt unlike those of other names."""
    token_ids = fields.pop("token_ids", tuple(ord(name[0]) * 100 + i for i in range(num_tokens)))
    scheduler.add(NewSequence(sequence_id=name, token_ids=token_ids, **fields))


def step(scheduler: Scheduler, max_prompt_tokens: int = ANY) -> SchedulerOutput:
    """One step, in which nothing fails; each sequence that samples gets another token."""
    output = scheduler.schedule(max_prompt_tokens)
    scheduler.complete(output.chunks)
    for chunk in output.chunks:
        if chunk.samples:
            scheduler.append(chunk.sequence_id, chunk.start)
    scheduler.check_integrity()
    return output


def sizes(output: SchedulerOutput) -> dict[str, int]:
    return {chunk.sequence_id: len(chunk.token_ids) for chunk in output.chunks}


def only(output: SchedulerOutput) -> Chunk:
    (chunk,) = output.chunks
    return chunk


def only_of(name: str, output: SchedulerOutput) -> Chunk:
    return next(chunk for chunk in output.chunks if chunk.sequence_id == name)
