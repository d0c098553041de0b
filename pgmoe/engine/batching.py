"""Putting together what runs steps: the pool of keys and values, the runner over it, the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import Assembly
from pgmoe.engine.billing import Billing
from pgmoe.engine.block_manager import BLOCK_TOKENS
from pgmoe.engine.block_mover import BlockMover
from pgmoe.engine.expert_choice import ExpertChoice
from pgmoe.engine.free_memory import allocating
from pgmoe.engine.pace import StepPace
from pgmoe.engine.paged_runner import PagedRunner
from pgmoe.engine.part import BeginPass
from pgmoe.engine.schedule import SchedulerLimits, SchedulerOutput
from pgmoe.engine.scheduler import Scheduler
from pgmoe.engine.sequence_runner import SequenceRunner
from pgmoe.engine.stepper import Stepper
from pgmoe.kv.choice import attention_over
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool, LayerShape
from pgmoe.metrics.stats import EngineStats
from pgmoe.models.paged import PagedModel
from pgmoe.units import parse_bytes


def build_stepper(
    config: EngineConfig, assembly: Assembly, stats: EngineStats, lock: Lock
) -> tuple[Stepper, Scheduler]:
    """For an assembled model. Raises ConfigError if there is no memory for its keys and values."""
    pace = StepPace(assembly.memory.prefill_chunk, config.max_inter_token_s)
    begin_pass = _announcer(assembly)
    billing = Billing(assembly.ledger, stats.experts)
    footprints = assembly.footprints
    prefer = None if footprints is None else ExpertChoice(footprints.of, lambda: assembly.pool.held)
    ended = _nobody if footprints is None else footprints.forget
    if assembly.memory.kv_shapes is None:
        alone = SequenceRunner(assembly.loaded.model, assembly.device, begin_pass)
        scheduler = Scheduler(_limits(config, assembly, num_host_blocks=0), prefer=prefer)
        return Stepper(scheduler, alone, _nothing_to_move, billing, pace, stats, lock, ended), scheduler
    num_host_blocks = parse_bytes(config.kv_swap_memory) // assembly.memory.kv.block_bytes
    pool = _pool(assembly, assembly.memory.kv_shapes, assembly.memory.num_blocks, assembly.device)
    host = None
    if num_host_blocks:
        host = _pool(assembly, assembly.memory.kv_shapes, num_host_blocks, torch.device("cpu"))
    pages = Pages(pool, attention_over(pool))
    model = PagedModel(assembly.loaded.model, pages)
    runner = PagedRunner(model, pages, pool, assembly.device, begin_pass)
    block_bytes = assembly.memory.kv.block_bytes
    mover = BlockMover(pool, host, block_bytes, lambda: pace.prompt_token_s)
    limits = _limits(config, assembly, num_host_blocks)
    scheduler = Scheduler(limits, swap_pays=mover.swap_pays, prefer=prefer)
    return Stepper(scheduler, runner, mover.move, billing, pace, stats, lock, ended), scheduler


def _limits(config: EngineConfig, assembly: Assembly, num_host_blocks: int) -> SchedulerLimits:
    """A cache of its own cannot be built again exactly, token by token as it was: all that a sequence may
    come to need is reserved for it, so that it never gives way, and its tokens themselves take one block."""
    return SchedulerLimits(
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        num_blocks=assembly.memory.num_blocks,
        block_tokens=BLOCK_TOKENS if assembly.memory.paged else assembly.memory.longest + 1,
        max_passed_over=config.max_passed_over,
        num_host_blocks=num_host_blocks,
        prefix_cache=config.prefix_cache and assembly.memory.paged,
    )


def _pool(
    assembly: Assembly, shapes: tuple[LayerShape, ...], num_blocks: int, device: torch.device
) -> KvPool:
    num_bytes = num_blocks * assembly.memory.kv.block_bytes
    way_out = "give a smaller kv_memory or max_model_len"
    with allocating("keys and values", num_bytes, device, way_out):
        return KvPool(shapes, num_blocks, BLOCK_TOKENS, device)


def _announcer(assembly: Assembly) -> BeginPass:
    def begin_pass(sequences: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
        assembly.gating.begin(sequences)
        assembly.ledger.begin(sequences, [len(ids) for ids in token_ids])
        if assembly.footprints is not None:
            assembly.footprints.begin(sequences, token_ids)

    return begin_pass


def _nobody(sequence: str) -> None:
    """Is told of a sequence's end."""


def _nothing_to_move(step: SchedulerOutput) -> None:
    """Sequences with caches of their own share no blocks."""
    assert not (*step.copies, *step.swaps_in, *step.swaps_out), step
