"""Both real links, straight into slots and through host memory, on the CPU.

torch has streams and events for the CPU that do nothing, as copies there are done when they return. So the
accelerator's copier is held by its bookkeeping here; the order of streams is for tests/gpu.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pgmoe.errors import ExpertReadError
from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.links.base import Arrival, Transfer, Urgency
from pgmoe.experts.links.copiers import Copier, RamCopier, StreamCopier
from pgmoe.experts.links.tiered import TieredLink
from pgmoe.experts.placement import every_expert
from pgmoe.experts.policies import make_policy
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.memory import page_aligned
from pgmoe.metrics.stats import DISK_TO_DEVICE, DISK_TO_HOST, HOST_TO_DEVICE, ExpertStats
from tests.support.damage import Original
from tests.support.expert_files import GatedStore, file_bytes, tensor_bytes
from tests.support.transfers import PATIENCE_S

CPU = torch.device("cpu")
COPIERS = {"none": lambda: None, "ram": RamCopier, "stream": lambda: StreamCopier(CPU)}
DEMAND, EXACT, GUESS = Urgency
Layers = tuple[ExpertLayer, ...]


class Rig:
    """A link, a slot for every expert, and host memory for every expert where there is a copier."""

    def __init__(self, layers: Layers, store: ExpertStore, copier: Copier | None, num_readers: int) -> None:
        self.layers, self.store, self.stats = layers, store, ExpertStats()
        self.every = every_expert(layers)
        self.arena = SlotArena(len(self.every), layers[0].layout.slot_bytes, CPU)
        self.link = TieredLink(store, num_readers, copier, self.stats)
        policy = make_policy("lru", [layer.num_experts for layer in layers])
        size = layers[0].layout.slot_bytes
        self.host = None if copier is None else HostTier(len(self.every), size, policy, pinned=False)

    def order(self, expert: ExpertId, urgency: Urgency = DEMAND) -> Transfer:
        blob, there = self.host.reserve(expert) if self.host is not None else (None, False)
        reason = "demand" if urgency is DEMAND else "prefetch"
        slot = self.arena.slot(self.every.index(expert))
        self.link.order(found := Transfer(expert, slot, urgency, reason, blob, not there))
        return found

    def wait(self) -> Arrival:
        arrival = self.link.wait()
        if self.host is not None:
            self.host.release(arrival.transfer.expert, arrived=arrival.in_host)
        return arrival

    def is_right(self, arrival: Arrival) -> bool:
        """Whether it brought the file's bytes into the slot that was asked for."""
        expert = arrival.transfer.expert
        layer = self.layers[expert.layer]
        views = layer.layout.views(arrival.transfer.slot, self.store.starts(expert))
        assert arrival.error is None
        return tensor_bytes(views) == file_bytes(layer, expert.expert)


class OneAtATime(GatedStore):
    """Reads wait until they are let go by expert."""

    def __init__(self, store: ExpertStore) -> None:
        super().__init__(store)
        self.let_go: set[ExpertId] = set()
        self.begun: list[ExpertId] = []
        self.changed = threading.Condition()

    def enter(self, expert: ExpertId) -> None:
        with self.changed:
            self.begun.append(expert)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: expert in self.let_go, timeout=PATIENCE_S)

    def open(self, *experts: ExpertId) -> None:
        with self.changed:
            self.let_go.update(experts)
            self.changed.notify_all()

    def wait_for(self, expert: ExpertId) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: expert in self.begun, timeout=PATIENCE_S)


@pytest.fixture(params=COPIERS)
def copier(request: pytest.FixtureRequest) -> Copier | None:
    found: Copier | None = COPIERS[request.param]()
    return found


@pytest.fixture
def rig(layers: Layers, store: DiskStore, copier: Copier | None) -> Iterator[Rig]:
    found = Rig(layers, store, copier, num_readers=2)
    yield found
    found.link.close()


def test_every_experts_bytes_land_in_its_slot(rig: Rig, copier: Copier | None) -> None:
    for expert in rig.every:
        rig.order(expert)
    arrivals = [rig.wait() for _ in rig.every]
    assert {a.transfer.expert for a in arrivals} == set(rig.every)
    assert all(rig.is_right(a) for a in arrivals)
    assert all((a.event is not None) == isinstance(copier, StreamCopier) for a in arrivals)
    assert all(a.in_host == (copier is not None) for a in arrivals)
    assert rig.link.arrived() == []


def test_bytes_are_counted_by_hop_and_reason(rig: Rig, copier: Copier | None) -> None:
    for expert in rig.every[:3]:
        rig.order(expert)
    rig.order(rig.every[3], GUESS)
    for _ in range(4):
        rig.wait()
    for expert in rig.every[:2]:
        rig.order(expert, GUESS)  # again: where there is host memory they lie in it
        assert rig.is_right(rig.wait())
    rig.link.close()
    size, slot = rig.layers[0].layout.weight_bytes, rig.layers[0].layout.slot_bytes
    found = {name: dict(link.num_bytes) for name, link in rig.stats.links.items()}
    if copier is None:
        assert found == {DISK_TO_DEVICE: {"demand": 3 * size, "prefetch": 3 * size}}
    else:
        assert found == {
            DISK_TO_HOST: {"demand": 3 * size, "prefetch": size},
            HOST_TO_DEVICE: {"demand": 3 * slot, "prefetch": 3 * slot},
        }


def test_errors_arrive_and_the_link_goes_on(rig: Rig) -> None:
    path = Path(rig.layers[0].extents[0][0].path)
    whole = Original(path)
    os.truncate(path, 10)
    failed = [e for e in rig.every if e.layer == 0]
    for expert in rig.every:
        rig.order(expert)
    arrivals = [rig.wait() for _ in rig.every]
    wrong = {a.transfer.expert: a for a in arrivals if a.error is not None}
    assert set(wrong) == set(failed)
    assert all(isinstance(a.error, ExpertReadError) and not a.in_host for a in wrong.values())
    whole.put_back()
    for expert in failed:
        rig.order(expert)
    assert all(rig.is_right(rig.wait()) for _ in failed)


def test_demand_overtakes_and_what_is_promoted_is_read_once(
    layers: Layers, store: DiskStore, copier: Copier | None
) -> None:
    gated = OneAtATime(store)
    rig = Rig(layers, gated, copier, num_readers=1)
    first, *guessed = rig.every[:5]
    rig.order(first, GUESS)
    gated.wait_for(first)
    guesses = [rig.order(expert, GUESS) for expert in guessed]
    rig.order(rig.every[6], EXACT)
    rig.order(rig.every[7])
    rig.link.promote(guesses[2], DEMAND)
    rig.link.promote(guesses[2], GUESS)  # less urgent than it is: no change
    assert rig.link.cancel(guesses[1])
    gated.open(*rig.every)
    arrivals = [rig.wait() for _ in range(6)]
    expected = [first, rig.every[7], guessed[2], rig.every[6], guessed[0], guessed[3]]
    assert gated.begun == expected
    assert [a.transfer.expert for a in arrivals] == expected
    assert all(rig.is_right(a) for a in arrivals)
    rig.link.close()


def test_what_has_begun_cannot_be_cancelled_but_promoted(
    layers: Layers, store: DiskStore, copier: Copier | None
) -> None:
    gated = OneAtATime(store)
    rig = Rig(layers, gated, copier, num_readers=1)
    running = rig.order(rig.every[0], GUESS)
    gated.wait_for(rig.every[0])
    assert not rig.link.cancel(running)
    rig.link.promote(running, DEMAND)
    gated.open(rig.every[0])
    assert rig.is_right(rig.wait())
    assert not rig.link.cancel(running)
    assert gated.begun == [rig.every[0]]
    rig.link.close()


def test_a_closed_link_takes_no_orders(rig: Rig) -> None:
    rig.link.close()
    rig.link.close()
    with pytest.raises(RuntimeError, match="closed"):
        rig.order(rig.every[0])


def test_a_copy_to_ram_starts_no_openmp_thread() -> None:
    """OpenMP counts every thread that enters it and then, beyond the cores, stops spinning."""
    size = 1 << 22
    host = HostTier(1, size, make_policy("lru", [1]), pinned=False)
    blob, _ = host.reserve(ExpertId(0, 0))
    transfer = Transfer(ExpertId(0, 0), page_aligned(size), DEMAND, "demand", blob, False)
    num_threads, started = torch.get_num_threads(), []

    def copy() -> None:
        torch.set_num_threads(4)
        before = set(os.listdir("/proc/self/task"))
        RamCopier().copy(transfer)
        started.append(set(os.listdir("/proc/self/task")) - before)

    copier = threading.Thread(target=copy)
    copier.start()
    copier.join()
    torch.set_num_threads(num_threads)
    assert started == [set()]
