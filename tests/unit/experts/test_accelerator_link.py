"""The accelerator's link with the CPU as its device.

torch has streams and events for the CPU that do nothing, as copies there are done when they return. So this
holds its bookkeeping; the order of streams is for tests/gpu.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

from pgmoe.engine.memory_plan import ExpertShape
from pgmoe.errors import ExpertReadError
from pgmoe.experts.cache import ExpertCache
from pgmoe.experts.compute import PooledExperts
from pgmoe.experts.link import AcceleratorLink, Arrival, HostLink, Link
from pgmoe.experts.policies import make_policy
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.host import HostStore
from pgmoe.experts.stores.tiered import TieredStore, spread_evenly
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.loader import load_model, read_plan
from pgmoe.selftest import read_plainly
from tests.conftest import TinyCheckpoints
from tests.support.runs import all_logits

CPU = torch.device("cpu")
NUM_READERS = 2
FAMILIES = ("olmoe", "gpt_oss")
TIERS = {"disk": {"disk"}, "host": {"host"}, "mixed": {"disk", "host"}}


def _layers(folder: Path) -> tuple[ExpertLayer, ...]:
    return read_plan(str(folder)).layers


@contextmanager
def _link(store: ExpertStore, layers: tuple[ExpertLayer, ...]) -> Iterator[Link]:
    link = AcceleratorLink(store, NUM_READERS, ExpertShape.of(layers, 0).slot_bytes, CPU)
    try:
        yield link
    finally:
        link.close()
        store.close()


def _store(tiers: str, layers: tuple[ExpertLayer, ...]) -> ExpertStore:
    disk = DiskStore(layers)
    if tiers == "disk":
        return disk
    num_experts = ExpertShape.of(layers, 0).num_experts
    held = spread_evenly(layers, num_experts if tiers == "host" else num_experts // 2)
    host = HostStore(layers, held, pinned=False)
    host.fill(disk, num_readers=NUM_READERS)
    if tiers == "mixed":
        return TieredStore(host, disk)
    disk.close()
    return host


def _fetch_all(
    link: Link, layers: tuple[ExpertLayer, ...], arena: SlotArena
) -> tuple[dict[ExpertId, Tensor], list[Arrival]]:
    """Order every expert of the model into a slot of its own, and wait for all."""
    experts = [ExpertId(i, e) for i, layer in enumerate(layers) for e in range(layer.num_experts)]
    slots = {expert: arena.slot(place) for place, expert in enumerate(experts)}
    arrivals: SimpleQueue[Arrival] = SimpleQueue()
    for expert in experts:
        link.fetch(expert, slots[expert], arrivals)
    return slots, [arrivals.get(timeout=30) for _ in experts]


def _arena(layers: tuple[ExpertLayer, ...]) -> SlotArena:
    shape = ExpertShape.of(layers, 0)
    return SlotArena(shape.num_experts, shape.slot_bytes, CPU)


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_experts_bytes_land_in_its_slot(tiny: TinyCheckpoints, family: str, tiers: str) -> None:
    layers = _layers(tiny(family, torch.bfloat16))
    store = _store(tiers, layers)
    with _link(store, layers) as link:
        slots, arrivals = _fetch_all(link, layers, _arena(layers))
        assert {a.tier for a in arrivals} == TIERS[tiers]
        assert {a.expert for a in arrivals} == set(slots)
        for arrival in arrivals:
            assert arrival.error is None
            assert arrival.tier == store.tier_of(arrival.expert)
            assert arrival.event is not None
            layer = layers[arrival.expert.layer]
            assert arrival.num_bytes >= layer.layout.weight_bytes
            views = layer.layout.views(slots[arrival.expert], store.starts(arrival.expert))
            expected = read_plainly(layer, arrival.expert.expert, CPU)
            assert views.keys() == expected.keys()
            assert all(torch.equal(views[name], expected[name]) for name in expected)


def test_errors_arrive_and_the_staging_memory_is_given_back(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("olmoe", torch.float32), folder)
    layers = _layers(folder)
    (file,) = folder.glob("*.safetensors")
    whole = file.read_bytes()
    arena = _arena(layers)
    with _link(DiskStore(layers), layers) as link:
        with file.open("r+b") as cut:
            cut.truncate(4096)
        _, failed = _fetch_all(link, layers, arena)
        assert len(failed) > NUM_READERS  # each blob was used again after a failure
        assert all(isinstance(a.error, ExpertReadError) for a in failed)
        assert all(a.num_bytes == 0 for a in failed)
        with file.open("r+b") as mended:
            mended.write(whole)
        _, arrived = _fetch_all(link, layers, arena)
        assert [a.error for a in arrived] == [None] * len(failed)


def _logits(
    folder: Path, tiers: str, make_link: Callable[[ExpertStore, int], Link]
) -> tuple[Tensor, ExpertStats]:
    """All logits of a prompt, with one slot more than a token needs."""
    loaded = load_model(read_plan(str(folder)), dtype=torch.bfloat16, device=CPU)
    shape, store, stats = ExpertShape.of(loaded.layers, 0), _store(tiers, loaded.layers), ExpertStats()
    num_slots = shape.top_k + 1
    pool = ExpertPool(
        loaded.layers,
        store,
        SlotArena(num_slots, shape.slot_bytes, CPU),
        ExpertCache(num_slots, make_policy("lru")),
        make_link(store, shape.slot_bytes),
        stats,
    )
    loaded.plug(lambda index, layer: PooledExperts(index, layer, pool))
    logits = all_logits(loaded.model, [list(range(5, 25))])
    pool.close()
    return logits, stats


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_through_either_link(
    tiny: TinyCheckpoints, family: str, tiers: str
) -> None:
    folder = tiny(family, torch.bfloat16)
    staged, stats = _logits(
        folder, tiers, lambda store, slot_bytes: AcceleratorLink(store, NUM_READERS, slot_bytes, CPU)
    )
    plain, _ = _logits(folder, tiers, lambda store, _: HostLink(store, NUM_READERS))
    assert stats.evictions.total() > 0
    assert set(stats.transfer_bytes) == {f"{tier}_to_device" for tier in TIERS[tiers]}
    assert torch.equal(staged, plain)
