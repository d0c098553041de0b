"""Experts in files of random bytes, anywhere in them, and a pool over them; no model needed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pgmoe.experts.cache import ExpertCache, SlotState
from pgmoe.experts.compute import PooledExperts
from pgmoe.experts.ffn import Weights
from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.ledger import Ledger
from pgmoe.experts.limiter import PrefetchLimiter
from pgmoe.experts.links.base import Link
from pgmoe.experts.links.copiers import RamCopier
from pgmoe.experts.links.emulated import EMULATED, Clock, EmulatedLink
from pgmoe.experts.links.tiered import TieredLink
from pgmoe.experts.placement import every_expert
from pgmoe.experts.policies import make_policy
from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.trust import GuessTrust
from pgmoe.gating.on_demand import OnDemand
from pgmoe.layout import PAGE, Blob, BlobLayout, ExpertFFN, ExpertId, ExpertLayer, Extent
from pgmoe.metrics.stats import ExpertStats
from pgmoe.routing import Gating
from tests.support.damage import Original, age

NUM_EXPERTS = 6
"""Of each layer, unless a test says otherwise."""
SHAPES = {"up": (70, 33), "down": (33, 35), "up_bias": (70,)}
"""About 14 kB: some whole pages, and less than a page."""


def write_layers(
    folder: Path, num_layers: int = 2, num_experts: int = NUM_EXPERTS, dtype: torch.dtype = torch.float32
) -> tuple[ExpertLayer, ...]:
    """One file for each layer; tensors lie in it with gaps between, `up` in two pieces far apart."""
    layout = BlobLayout.pack(SHAPES, dtype)
    generator = torch.Generator().manual_seed(1)
    layers = []
    for number in range(num_layers):
        path = folder / f"layer-{number}.bin"
        extents, place = [], 0
        for _ in range(num_experts):
            ranges = []
            for region in layout.regions:
                pieces = 2 if region.name == "up" else 1
                for piece in range(pieces):
                    place += 8 * int(torch.randint(0, 700, (), generator=generator))
                    size = region.nbytes // pieces
                    ranges.append(Extent(str(path), place, size, region.name, piece * size))
                    place += size
            extents.append(tuple(ranges))
        weights = torch.randn(place // dtype.itemsize, generator=generator).to(dtype)
        path.write_bytes(weights.view(torch.uint8).numpy().tobytes())
        age(path)
        ffn = ExpertFFN(activation=lambda x: torch.relu(x[:, :35]) * x[:, 35:])
        layers.append(ExpertLayer(f"layers.{number}.experts", layout, ffn, tuple(extents), top_k=2))
    return tuple(layers)


def write_packed_layers(folder: Path, layers: Sequence[ExpertLayer]) -> tuple[ExpertLayer, ...]:
    """The same experts as blobs: one file for each layer, a page of something else before its first blob."""
    folder.mkdir()
    packed = []
    for number, layer in enumerate(layers):
        path, layout = folder / f"packed-{number}.bin", layer.layout.tightened()
        content, blobs, extents = bytes(PAGE), [], []
        for expert in range(layer.num_experts):
            tensors, blob = file_bytes(layer, expert), bytearray(layout.slot_bytes)
            for region in layout.regions:
                blob[region.offset : region.offset + region.nbytes] = tensors[region.name]
            begin = len(content)
            blobs.append(Blob(str(path), begin, len(blob), zlib.crc32(blob)))
            extents.append(
                tuple(Extent(str(path), begin + r.offset, r.nbytes, r.name, 0) for r in layout.regions)
            )
            content += blob
        path.write_bytes(content)
        age(path)
        packed.append(replace(layer, layout=layout, extents=tuple(extents), blobs=tuple(blobs)))
    return tuple(packed)


def file_bytes(layer: ExpertLayer, expert: int) -> dict[str, bytes]:
    """An expert's tensors as the files have them now."""
    found: dict[str, bytes] = {}
    for extent in layer.extents[expert]:
        data = Path(extent.path).read_bytes()[extent.offset : extent.offset + extent.nbytes]
        found[extent.tensor] = found.get(extent.tensor, b"") + data
    return found


def tensor_bytes(weights: Weights) -> dict[str, bytes]:
    """The same of tensors in a slot."""
    return {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in weights.items()}


@dataclass
class PoolParts:
    """A pool on the CPU and what a test looks at."""

    layers: tuple[ExpertLayer, ...]
    store: ExpertStore
    num_slots: int
    num_readers: int = 3
    policy: str = "lru"
    stats: ExpertStats = field(default_factory=ExpertStats)
    num_host_blobs: int = 0
    """Experts that host memory holds between disk and slots; 0 is no such tier."""
    clock: Clock | None = None
    """Makes the link an emulated one that takes a second for each expert, by this clock."""

    def __post_init__(self) -> None:
        slot_bytes = max(layer.layout.slot_bytes for layer in self.layers)
        self.cache = ExpertCache(self.num_slots, self._make_policy())
        self.arena = SlotArena(self.num_slots, slot_bytes, torch.device("cpu"))
        self.host: HostTier | None = None
        if self.num_host_blobs:
            self.host = HostTier(self.num_host_blobs, slot_bytes, self._make_policy(), pinned=False)
        self.link = self._emulated(slot_bytes) if self.clock else self._tiered()
        self.pool = ExpertPool(
            self.layers, self.store, self.arena, self.cache, self.link, self.stats, self.host
        )

    def _tiered(self) -> Link:
        copier = None if self.host is None else RamCopier()
        return TieredLink(self.store, self.num_readers, copier, self.stats)

    def _emulated(self, slot_bytes: int) -> Link:
        every = every_expert(self.layers)
        source = HostTier(len(every), slot_bytes, self._make_policy(), pinned=False)
        source.fill(every, self.store, num_readers=1)
        bandwidth = self.layers[0].layout.weight_bytes
        return EmulatedLink(
            source, self._weight_bytes, self.stats.links[EMULATED], bandwidth=bandwidth, clock=self.clock
        )

    def _weight_bytes(self, expert: ExpertId) -> int:
        return self.layers[expert.layer].layout.weight_bytes

    def _make_policy(self) -> EvictionPolicy:
        return make_policy(self.policy, [layer.num_experts for layer in self.layers])

    def experts(self, layer: int, gating: Gating | None = None) -> PooledExperts:
        """What an MoE layer calls; on demand unless a gating is given."""
        size = self.layers[layer].layout.weight_bytes
        gating = gating or OnDemand()
        prefetcher = Prefetcher(gating, self.pool, PrefetchLimiter(1e9), GuessTrust(), size, self.stats)
        ledger = Ledger([layer.num_experts for layer in self.layers])
        return PooledExperts(layer, self.layers[layer], self.pool, prefetcher, ledger)

    def take(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Lease these, check every byte, and give them in the order in which they came."""
        order = []
        with self.pool.lease(layer, experts) as lent:
            for (expert,) in lent:
                assert tensor_bytes(expert.weights) == file_bytes(self.layers[layer], expert.index)
                order.append(expert.index)
        return order

    def resident(self) -> set[ExpertId]:
        """Experts in slots; asserts that none is in flight and the books are right."""
        self.pool.check_integrity()
        assert not self.in_state(SlotState.IN_FLIGHT)
        return self.in_state(SlotState.READY)

    def in_state(self, state: SlotState) -> set[ExpertId]:
        """The experts that stand so with the slots."""
        return {expert for expert in every_expert(self.layers) if self.cache.state(expert) is state}


class GatedStore:
    """A store whose reads first pass `enter`, which may wait or fail."""

    def __init__(self, store: ExpertStore) -> None:
        """`store` stays open when this one is closed."""
        self.store = store

    def enter(self, expert: ExpertId) -> None:
        raise NotImplementedError

    def starts(self, expert: ExpertId) -> dict[str, int]:
        return self.store.starts(expert)

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        self.enter(expert)
        return self.store.read(expert, slot)

    def verify(self, expert: ExpertId, slot: Tensor) -> None:
        self.store.verify(expert, slot)

    def is_corrupt(self, expert: ExpertId) -> bool:
        return self.store.is_corrupt(expert)

    def close(self) -> None:
        pass


def flip_sign_bits(layer: ExpertLayer) -> None:
    """Turn the sign of one weight of every expert's `down` tensor around, on the disk: no write shows."""
    for extents in layer.extents:
        (down,) = (e for e in extents if e.tensor == "down")
        last_byte = down.offset + layer.dtype.itemsize - 1  # little-endian: the sign is in the last one
        before = Original(Path(down.path))
        with open(down.path, "r+b") as file:
            file.seek(last_byte)
            (byte,) = file.read(1)
            file.seek(last_byte)
            file.write(bytes([byte ^ 0x80]))
        before.put_back_time()
