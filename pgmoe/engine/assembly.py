"""Putting an engine's model together: checkpoint, budget, slots, store, link, pool."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.memory_plan import ExpertShape, plan_slots, wants_host_store
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
from pgmoe.layout import ExpertLayer
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.loader import LoadedModel, ModelPlan, load_model, read_plan

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


def assemble(config: EngineConfig, stats: ExpertStats, progress: Progress | None = None) -> Assembly:
    """Load what `config` names. Raises ConfigError, BudgetTooSmall or CheckpointError."""
    policy = make_policy(config.policy)
    device = resolve_device(config.device)
    plan = read_plan(config.model)
    dtype = resolve_dtype(config.dtype, plan.layers)
    shape = ExpertShape.of(plan.layers, plan.dense_bytes)
    # Budgets that cannot be honoured fail here, before anything is loaded.
    num_slots = plan_slots(config.device_memory, shape)
    accelerator = device.type != "cpu"
    in_host = wants_host_store(config.host_memory, shape, accelerator=accelerator, free_ram=free_ram())
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    loaded = load_model(plan, dtype=dtype, device=device)
    store: ExpertStore = DiskStore(loaded.layers, direct_io=config.direct_io)
    if in_host:
        store = _copy_to_host(store, loaded.layers, config.num_readers, accelerator, progress)
    arena = SlotArena(num_slots, shape.slot_bytes, device)
    pool = ExpertPool(
        loaded.layers,
        store,
        arena,
        ExpertCache(num_slots, policy),
        _open_link(config, store, shape.slot_bytes, device),
        stats,
    )
    loaded.plug(lambda index, layer: PooledExperts(index, layer, pool))
    return Assembly(loaded, pool, num_slots, device, dtype)


def resolve_device(name: str) -> torch.device:
    """`auto` or a torch device name. Raises ConfigError if there is no such device here."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
        here = accelerator.type if accelerator else "none"
        raise ConfigError(f"device {name!r}: this machine's accelerator is {here}; use cpu or auto")
    return device


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


def free_ram() -> int:
    """Bytes of physical memory that are free or only cache, by the operating system's account."""
    with open("/proc/meminfo", encoding="ascii") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _copy_to_host(
    disk: ExpertStore,
    layers: tuple[ExpertLayer, ...],
    num_readers: int,
    pinned: bool,
    progress: Progress | None,
) -> HostStore:
    """All experts in host memory; `disk` is closed."""
    host = HostStore(layers, pinned=pinned)
    total = sum(layer.num_experts * layer.layout.weight_bytes for layer in layers)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    try:
        host.fill(disk, num_readers=num_readers, progress=count)
    finally:
        disk.close()
    return host


def _open_link(config: EngineConfig, store: ExpertStore, slot_bytes: int, device: torch.device) -> Link:
    if device.type == "cpu":
        return HostLink(store, config.num_readers)
    return AcceleratorLink(store, config.num_readers, slot_bytes, device)


__all__ = ["Assembly", "ModelPlan", "Progress", "assemble", "free_ram", "resolve_device", "resolve_dtype"]
