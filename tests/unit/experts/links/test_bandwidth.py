"""What a link carries, measured at the start, on real files."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pgmoe.errors import ExpertReadError
from pgmoe.experts.links.bandwidth import SPREAD_BYTES, measure_reads, targets_needed
from pgmoe.experts.placement import every_expert
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId, ExpertLayer
from tests.support.expert_files import GatedStore

Layers = tuple[ExpertLayer, ...]


class Counting(GatedStore):
    """Counts reads; those of `broken` fail."""

    def __init__(self, store: DiskStore, broken: ExpertId | None = None) -> None:
        super().__init__(store)
        self.reads: Counter[ExpertId] = Counter()
        self.broken = broken

    def enter(self, expert: ExpertId) -> None:
        if expert == self.broken:
            raise ExpertReadError("broken")
        self.reads[expert] += 1


@pytest.mark.parametrize("num_targets", [1, 2, 5])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_every_expert_is_read_once_at_most_however_few_the_targets(
    layers: Layers, store: DiskStore, num_targets: int, num_readers: int
) -> None:
    counting = Counting(store)
    arena = SlotArena(num_targets, layers[0].layout.slot_bytes, torch.device("cpu"))
    targets = [arena.slot(index) for index in range(num_targets)]
    assert measure_reads(counting, every_expert(layers), targets, num_readers, seconds=30) > 0
    assert counting.reads == Counter(every_expert(layers))


def test_an_expert_that_cannot_be_read_ends_it_without_a_figure(layers: Layers, store: DiskStore) -> None:
    arena = SlotArena(2, layers[0].layout.slot_bytes, torch.device("cpu"))
    broken = Counting(store, broken=ExpertId(1, 2))
    assert measure_reads(broken, every_expert(layers), [arena.slot(0), arena.slot(1)], 2) == 0


def test_it_needs_as_many_targets_as_no_processor_caches_and_one_for_each_reader() -> None:
    assert targets_needed(2**20, 2) * 2**20 == SPREAD_BYTES
    assert targets_needed(SPREAD_BYTES, 4) == 4
