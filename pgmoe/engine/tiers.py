"""The tiers below the slots and the link to them, built as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmoe.config import EngineConfig
from pgmoe.engine.free_memory import allocating
from pgmoe.errors import ConfigError
from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.links.bandwidth import measure_copies, measure_reads, targets_needed
from pgmoe.experts.links.base import Link
from pgmoe.experts.links.copiers import COPIES_AHEAD, RamCopier, StreamCopier
from pgmoe.experts.links.emulated import EMULATED, EmulatedLink
from pgmoe.experts.links.tiered import TieredLink
from pgmoe.experts.placement import every_expert, spread_evenly
from pgmoe.experts.policies import make_policy
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.opening import open_disk_store
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.metrics.stats import DISK_TO_DEVICE, DISK_TO_HOST, HOST_TO_DEVICE, ExpertStats
from pgmoe.units import parse_rate

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) while a model is packed or experts are copied to host memory."""


@dataclass(frozen=True)
class Tiers:
    """Where experts come from."""

    store: ExpertStore
    host: HostTier | None
    """The tier that the link passes through, if there is one."""
    link: Link
    bandwidth: float
    """Bytes per second of the slowest hop that experts may have to take; 0 where none is measured."""


class TierBuilder:
    """Builds them for one model and device."""

    def __init__(
        self,
        config: EngineConfig,
        layers: tuple[ExpertLayer, ...],
        device: torch.device,
        stats: ExpertStats,
        progress: Progress | None,
    ) -> None:
        self._config = config
        self._layers = layers
        self._device = device
        self._stats = stats
        self._progress = progress
        self._slot_bytes = max(layer.layout.slot_bytes for layer in layers)

    def build(self, arena: SlotArena, num_in_host: int) -> Tiers:
        """Open the files, copy `num_in_host` experts to host memory, measure. Raises ConfigError."""
        with ExitStack() as on_failure:
            direct_io, check_pack = self._config.direct_io, self._config.verify_pack
            store = open_disk_store(self._layers, direct_io=direct_io, check_pack=check_pack)
            on_failure.callback(store.close)
            emulated = self._config.emulated_link is not None
            tiers = self._emulated(store) if emulated else self._real(store, arena, num_in_host)
            on_failure.pop_all()
        return tiers

    def _real(self, store: ExpertStore, arena: SlotArena, num_in_host: int) -> Tiers:
        config, on_cpu = self._config, self._device.type == "cpu"
        experts = every_expert(self._layers)
        disk, copier, corrupt = DISK_TO_DEVICE, None, []
        host = self._host_tier(num_in_host)
        if host is not None:
            disk, copier = DISK_TO_HOST, RamCopier() if on_cpu else StreamCopier(self._device)
            corrupt = self._fill(host, spread_evenly(self._layers, num_in_host), store)
        links, bandwidth = self._stats.links, 0.0
        if host is not None:
            bandwidth = measure_copies(host.any_memory, arena.slot(0))
            links[HOST_TO_DEVICE].bandwidth = bandwidth
        if num_in_host == len(experts) and not corrupt:
            store.close()  # its files are no longer needed
        elif arena.num_slots < len(experts):  # else each is read but once, whatever the disk carries
            bandwidth = measure_reads(store, experts, self._read_targets(arena), config.num_readers)
            links[disk].bandwidth = bandwidth
        link = TieredLink(store, config.num_readers, copier, self._stats)
        return Tiers(store, host, link, bandwidth)

    def _read_targets(self, arena: SlotArena) -> list[Tensor]:
        """For measuring: slots, none of which holds an expert yet; host memory where they are elsewhere."""
        num_targets = targets_needed(self._slot_bytes, self._config.num_readers)
        if self._device.type != "cpu":
            num_bytes, ram = num_targets * self._slot_bytes, torch.device("cpu")
            with allocating("experts to measure the disk with", num_bytes, ram, "give a smaller host_memory"):
                arena = SlotArena(num_targets, self._slot_bytes, ram)
        return [arena.slot(index) for index in range(min(num_targets, arena.num_slots))]

    def _host_tier(self, num_in_host: int) -> HostTier | None:
        """None on a CPU that shall have none. Beside an accelerator what is read has to pass through it."""
        num_blobs, on_cpu = num_in_host, self._device.type == "cpu"
        if not on_cpu:
            num_blobs = max(num_in_host, self._config.num_readers + COPIES_AHEAD)
        return self._allocate_host(num_blobs) if num_blobs else None

    def _emulated(self, store: ExpertStore) -> Tiers:
        if self._device.type != "cpu":
            raise ConfigError(f"emulated_link: for the cpu only, not for {self._device}; leave it out")
        assert self._config.emulated_link is not None
        bandwidth = parse_rate(self._config.emulated_link)
        experts = every_expert(self._layers)
        source = self._allocate_host(len(experts))
        if corrupt := self._fill(source, experts, store):
            raise ConfigError(f"emulated_link needs all experts, and {len(corrupt)} are corrupt; see the log")
        store.close()  # its files are no longer needed
        link = EmulatedLink(
            source,
            lambda expert: self._layers[expert.layer].layout.weight_bytes,
            self._stats.links[EMULATED],
            bandwidth=bandwidth,
            latency_s=self._config.emulated_latency_s,
        )
        return Tiers(store, None, link, bandwidth)

    def _allocate_host(self, num_blobs: int) -> HostTier:
        way_out = "give a smaller host_memory, or 0"
        num_bytes, ram = num_blobs * self._slot_bytes, torch.device("cpu")
        with allocating(f"copies of {num_blobs} experts", num_bytes, ram, way_out):
            policy = make_policy(self._config.policy, [layer.num_experts for layer in self._layers])
            return HostTier(num_blobs, self._slot_bytes, policy, pinned=self._device.type != "cpu")

    def _fill(self, host: HostTier, experts: Sequence[ExpertId], store: ExpertStore) -> list[ExpertId]:
        """Read these into host memory, counted, with progress. Returns those left out as corrupt."""
        total = sum(self._layers[e.layer].layout.weight_bytes for e in experts)
        counted, done = self._stats.links[DISK_TO_HOST].num_bytes, 0

        def count(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            counted["start"] += num_bytes
            if self._progress is not None:
                self._progress(done, total)

        return host.fill(experts, store, num_readers=self._config.num_readers, progress=count)
