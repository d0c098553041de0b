"""Putting an engine's model together: checkpoint, budget, slots, store, link, pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.free_memory import allocating, free_ram
from pgmoe.engine.memory_plan import ExpertShape, plan_host_experts, plan_slots
from pgmoe.errors import ConfigError
from pgmoe.experts.cache import ExpertCache
from pgmoe.experts.compute import PooledExperts
from pgmoe.experts.link import AcceleratorLink, HostLink, Link
from pgmoe.experts.policies import make_policy
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.host import HostStore
from pgmoe.experts.stores.tiered import TieredStore, spread_evenly
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.loader import LoadedModel, load_model, read_plan

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) while experts are copied to host memory."""


@dataclass(frozen=True)
class Assembly:
    """A model whose MoE layers take their experts from a pool."""

    loaded: LoadedModel
    pool: ExpertPool
    num_slots: int
    device: torch.device
    dtype: torch.dtype

    def close(self) -> None:
        """Stop reading and give back files."""
        with ExitStack() as last:
            last.callback(self.loaded.close)
            self.pool.close()


def assemble(config: EngineConfig, stats: ExpertStats, progress: Progress | None = None) -> Assembly:
    """Load what `config` names. Raises ConfigError, BudgetTooSmall or CheckpointError."""
    policy = make_policy(config.policy)
    device = resolve_device(config.device)
    plan = read_plan(config.model)
    dtype = resolve_dtype(config.dtype, plan.layers)
    shape = ExpertShape.of(plan.layers, plan.loaded_bytes(device))
    # Budgets that cannot be honoured fail here, before anything is loaded.
    num_slots = plan_slots(config.device_memory, shape)
    accelerator = device.type != "cpu"
    on_device = shape.dense_bytes + num_slots * shape.slot_bytes
    room = free_ram() if accelerator else max(0, free_ram() - on_device)
    num_in_host = plan_host_experts(config.host_memory, shape, accelerator=accelerator, free_ram=room)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    loaded = load_model(plan, dtype=dtype, device=device)
    with ExitStack() as on_failure:
        on_failure.callback(loaded.close)
        store = _open_store(config, loaded.layers, device, num_in_host, stats, progress)
        on_failure.callback(store.close)
        with allocating("expert slots", num_slots * shape.slot_bytes, device, "give a smaller device_memory"):
            arena = SlotArena(num_slots, shape.slot_bytes, device)
        link = _open_link(config, store, shape.slot_bytes, device)
        on_failure.callback(link.close)
        pool = ExpertPool(loaded.layers, store, arena, ExpertCache(num_slots, policy), link, stats)
        loaded.plug(lambda index, layer: PooledExperts(index, layer, pool))
        on_failure.pop_all()
    return Assembly(loaded, pool, num_slots, device, dtype)


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


def resolve_dtype(name: str, layers: tuple[ExpertLayer, ...]) -> torch.dtype:
    """The compute type. Raises ConfigError if it is not the one that the experts are stored in."""
    stored = {layer.dtype for layer in layers}
    if len(stored) > 1:
        raise ConfigError(f"experts are stored in several types ({stored}); convert the checkpoint to one")
    (dtype,) = stored
    wanted = dtype if name == "auto" else getattr(torch, name)
    if wanted != dtype:
        short = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"dtype {name!r}: the experts are stored as {short} and are not converted on their way; "
            f"use dtype auto, or save the checkpoint as {name}"
        )
    return dtype


def _open_store(
    config: EngineConfig,
    layers: tuple[ExpertLayer, ...],
    device: torch.device,
    num_in_host: int,
    stats: ExpertStats,
    progress: Progress | None,
) -> ExpertStore:
    """The checkpoint's files, with so many experts copied to host memory; if all, the files are closed."""
    disk = DiskStore(layers, direct_io=config.direct_io)
    if not num_in_host:
        return disk
    held = spread_evenly(layers, num_in_host)
    num_bytes = num_in_host * max(layer.layout.slot_bytes for layer in layers)
    with ExitStack() as no_longer_needed:
        no_longer_needed.callback(disk.close)
        way_out = "give a smaller host_memory, or 0"
        with allocating(f"copies of {num_in_host} experts", num_bytes, torch.device("cpu"), way_out):
            host = HostStore(layers, held, pinned=device.type != "cpu")
        host.fill(disk, num_readers=config.num_readers, progress=_counter(layers, held, stats, progress))
        if num_in_host < sum(layer.num_experts for layer in layers):
            no_longer_needed.pop_all()
            return TieredStore(host, disk)
    return host


def _counter(
    layers: tuple[ExpertLayer, ...],
    experts: Sequence[ExpertId],
    stats: ExpertStats,
    progress: Progress | None,
) -> Callable[[int], None]:
    """A function that takes the bytes of each expert copied, counts them, and tells `progress` the sum."""
    total = sum(layers[expert.layer].layout.weight_bytes for expert in experts)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        stats.transfer_bytes["disk_to_host"] += num_bytes
        if progress is not None:
            progress(done, total)

    return count


def _open_link(config: EngineConfig, store: ExpertStore, slot_bytes: int, device: torch.device) -> Link:
    if device.type == "cpu":
        return HostLink(store, config.num_readers)
    staging = config.num_readers * slot_bytes
    with allocating("staging buffers", staging, torch.device("cpu"), "give a smaller num_readers"):
        return AcceleratorLink(store, config.num_readers, slot_bytes, device)
