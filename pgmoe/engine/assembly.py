"""Putting an engine's model together: checkpoint, budget, slots, store, link, pool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.free_memory import allocating, free_ram
from pgmoe.engine.measured_needs import plan_for
from pgmoe.engine.memory_plan import ExpertShape, MemoryPlan, plan_host_experts
from pgmoe.engine.named_options import check_options
from pgmoe.engine.tiers import Progress, TierBuilder
from pgmoe.errors import ConfigError
from pgmoe.experts.cache import ExpertCache
from pgmoe.experts.compute import PooledExperts
from pgmoe.experts.expander import expanded_bytes
from pgmoe.experts.footprints import Footprints
from pgmoe.experts.ledger import Ledger
from pgmoe.experts.limiter import LimiterRules, PrefetchLimiter
from pgmoe.experts.policies import make_policy
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.trust import GuessTrust
from pgmoe.experts.whole_layers import WholeLayers
from pgmoe.gating.make import AUTO, GatingInputs, make_gating
from pgmoe.layout import ExpertLayer
from pgmoe.memory import return_large_blocks
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.early import early_blocks
from pgmoe.models.kernels import use_kernels
from pgmoe.models.loader import LoadedModel, load_model, read_plan
from pgmoe.models.routers import look_aheads
from pgmoe.packing.cache import cached_pack
from pgmoe.routing import Gating
from pgmoe.trace import Trace

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """A model whose MoE layers take their experts from a pool."""

    loaded: LoadedModel
    pool: ExpertPool
    gating: Gating
    ledger: Ledger
    """Told by the MoE layers of each pass which experts were there for whom."""
    footprints: Footprints | None
    """Told likewise; None where nobody asks for them."""
    memory: MemoryPlan
    device: torch.device
    dtype: torch.dtype

    def close(self) -> None:
        """Stop reading and give back files."""
        with ExitStack() as last:
            last.callback(self.loaded.close)
            self.pool.close()


def assemble(
    config: EngineConfig,
    stats: ExpertStats,
    progress: Progress | None = None,
    wrap_gating: Callable[[Gating], Gating] | None = None,
) -> Assembly:
    """Load what `config` names. Raises ConfigError, BudgetTooSmall or CheckpointError.

    `wrap_gating` may put something around the gating that sees all that it sees, a recorder for one.
    """
    check_options(config)
    stats.policy = config.policy
    device = resolve_device(config.device)
    packing = config.pack == "auto"
    plan = read_plan(cached_pack(config.model, config.pack_folder, progress) if packing else config.model)
    dtype = resolve_dtype(config.dtype, plan.layers)
    shape = ExpertShape.of(plan.layers, plan.loaded_bytes(device))
    # Budgets that cannot be honoured fail here, before anything is loaded.
    memory = plan_for(config, plan, device, shape)
    _logger.info("device memory of %s:\n%s", config.name, memory.text())
    accelerator = device.type != "cpu"
    if not accelerator:
        memory.check_room(free_ram())
    room = free_ram() if accelerator else max(0, free_ram() - memory.total_bytes)
    num_in_host = plan_host_experts(config.host_memory, shape, accelerator=accelerator, free_ram=room)
    if memory.budget_bytes is not None and not accelerator:
        return_large_blocks()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    loaded = load_model(plan, dtype=dtype, device=device)
    with ExitStack() as on_failure:
        on_failure.callback(loaded.close)
        pool, bandwidth = _open_pool(config, loaded.layers, device, memory, num_in_host, stats, progress)
        on_failure.callback(pool.close)
        # Where all experts have slots there is nothing to fetch but once; a wrapper sees it all the same.
        idle = memory.num_slots == shape.num_experts and wrap_gating is None
        gating = _gating(config, loaded, idle=idle)
        if wrap_gating is not None:
            gating = wrap_gating(gating)
        limiter = PrefetchLimiter(bandwidth, _limiter_rules(device))
        prefetcher = _prefetcher(config, loaded.layers, gating, pool, limiter, stats)
        footprints = _footprints(config, loaded, memory)
        ledger = _plug(loaded, pool, prefetcher, footprints)
        on_failure.pop_all()
    return Assembly(loaded, pool, gating, ledger, footprints, memory, device, dtype)


def _limiter_rules(device: torch.device) -> LimiterRules:
    """An accelerator waits for copies by itself, unseen: stalls do not say there what guesses may gain."""
    return LimiterRules() if device.type == "cpu" else LimiterRules(least_stall_share=0.0)


def _prefetcher(
    config: EngineConfig,
    layers: tuple[ExpertLayer, ...],
    gating: Gating,
    pool: ExpertPool,
    limiter: PrefetchLimiter,
    stats: ExpertStats,
) -> Prefetcher:
    weight_bytes = max(layer.layout.weight_bytes for layer in layers)
    num_experts, top_k = zip(*((layer.num_experts, layer.top_k) for layer in layers), strict=True)
    whole = WholeLayers(num_experts, top_k, weight_bytes) if config.whole_layers == "auto" else None
    return Prefetcher(gating, pool, limiter, GuessTrust(), weight_bytes, stats, whole)


def _footprints(config: EngineConfig, loaded: LoadedModel, memory: MemoryPlan) -> Footprints | None:
    """None where nobody asks for them, or they would not tell anything."""
    all_in_slots = memory.num_slots == memory.num_experts
    if config.admission == "fcfs" or all_in_slots or loaded.model.config.is_encoder_decoder:
        return None
    return Footprints([layer.num_experts for layer in loaded.layers], 2 * config.max_running)


def _plug(
    loaded: LoadedModel, pool: ExpertPool, prefetcher: Prefetcher, footprints: Footprints | None
) -> Ledger:
    """Have every MoE layer take its experts from the pool, blocks that choose early say so, and other modules
    take our kernels."""
    ledger = Ledger([layer.num_experts for layer in loaded.layers])
    use_kernels(loaded.model)
    plugged = [
        PooledExperts(i, layer, pool, prefetcher, ledger, footprints) for i, layer in enumerate(loaded.layers)
    ]
    loaded.plug(lambda index, _: plugged[index])
    for index, block in early_blocks(loaded.model, loaded.sockets).items():
        block.announce = plugged[index].announce
    return ledger


def _open_pool(
    config: EngineConfig,
    layers: tuple[ExpertLayer, ...],
    device: torch.device,
    memory: MemoryPlan,
    num_in_host: int,
    stats: ExpertStats,
    progress: Progress | None,
) -> tuple[ExpertPool, float]:
    """Slots over the tiers below them, and the bytes per second that these give."""
    way_out = "give a smaller device_memory"
    with allocating("expert slots", memory.slots_bytes, device, way_out):
        arena = SlotArena(memory.num_slots, memory.slot_bytes, device)
    # With a slot for each nobody goes, and the cheapest books will do.
    name = "lru" if memory.num_slots == memory.num_experts else config.policy
    policy = make_policy(name, [layer.num_experts for layer in layers])
    tiers = TierBuilder(config, layers, device, stats, progress).build(arena, num_in_host)
    cache = ExpertCache(memory.num_slots, policy)
    with ExitStack() as on_failure:
        on_failure.callback(tiers.store.close)
        on_failure.callback(tiers.link.close)
        with allocating("expanded experts", expanded_bytes(layers), device, way_out):
            pool = ExpertPool(layers, tiers.store, arena, cache, tiers.link, stats, tiers.host)
        on_failure.pop_all()
    return pool, tiers.bandwidth


def parse_device(name: str) -> torch.device:
    """A torch device's name, or `auto` for the accelerator if there is one here. Raises ConfigError."""
    if name == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from error


def resolve_device(name: str) -> torch.device:
    """The device of this name on this machine. Raises ConfigError if there is no such one here."""
    device, accelerator = parse_device(name), _accelerator()
    if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
        here = accelerator.type if accelerator else "none"
        raise ConfigError(f"device {name!r}: this machine's accelerator is {here}; use cpu or auto")
    count = torch.get_device_module(device).device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device {name!r}: there is {device.type}:0 to {device.type}:{count - 1} here")
    return device


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _gating(config: EngineConfig, loaded: LoadedModel, *, idle: bool) -> Gating:
    """The gating by its name; one that predicts nothing where it would be `idle`."""
    trace = None if config.gating_trace is None else Trace.load(Path(config.gating_trace).expanduser())
    experts_per_layer = tuple(layer.num_experts for layer in loaded.layers)
    pre_gates, guesses = loaded.pre_gates, config.gating in (AUTO, "speculative")
    early = tuple(early_blocks(loaded.model, loaded.sockets))
    asked = guesses and pre_gates is None and not early
    ahead = tuple(look_aheads(loaded.model, loaded.sockets)) if asked else ()
    selections = tuple(pre_gates.selection_from(s.block) for s in loaded.sockets) if pre_gates else ()
    level = pre_gates.level if pre_gates else 0
    inputs = GatingInputs(experts_per_layer, ahead, trace, selections, level, early)
    made = make_gating(config.gating, inputs)  # a gating that cannot be is told even where it would be idle
    return make_gating("on_demand", inputs) if idle else made


def resolve_dtype(name: str, layers: tuple[ExpertLayer, ...]) -> torch.dtype:
    """The compute type. Raises ConfigError if it is not that of the experts, stored or expanded."""
    stored = {layer.dtype for layer in layers}
    if len(stored) > 1:
        raise ConfigError(f"experts are stored in several types ({stored}); convert the checkpoint to one")
    (dtype,) = stored
    wanted = dtype if name == "auto" else getattr(torch, name)
    if wanted != dtype:
        short = str(dtype).removeprefix("torch.")
        if any(layer.encoding != "plain" for layer in layers):
            raise ConfigError(
                f"dtype {name!r}: quantised experts are computed in {short}, as config.json has it; "
                "use dtype auto"
            )
        raise ConfigError(
            f"dtype {name!r}: the experts are stored as {short} and are not converted on their way; "
            f"use dtype auto, or save the checkpoint as {name}"
        )
    return dtype
