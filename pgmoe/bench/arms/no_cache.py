"""The plainest offloading: read an expert when it is chosen, compute it, forget it.

The yardstick for everything that slots, overlap and parallel reads gain; the reads themselves are as good as
ours (past the page cache, straight to their place), so that the difference is not one of file access.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.arms.stepwise import answer_stepwise
from pgmoe.bench.job import Answer, Job, Place, Traffic
from pgmoe.engine.assembly import resolve_dtype
from pgmoe.errors import ConfigError
from pgmoe.experts.expander import Expander
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.tokens import tokens_of
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.memory import page_aligned
from pgmoe.models.kernels import use_kernels
from pgmoe.models.loader import load_model, read_plan


@dataclass(frozen=True)
class NoCacheArm:
    """On demand from disk with O_DIRECT, one expert after another, nothing kept. CPU only."""

    name: str = "no cache"
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedNoCache:
        """See Arm."""
        if place.device != "cpu":
            raise ConfigError(f"the arm {self.name!r} runs on a cpu, not on {place.device}")
        torch.set_num_threads(place.num_threads)
        return LoadedNoCache(place.model)


@dataclass
class Reader:
    """One slot's memory, filled anew for every expert."""

    store: ExpertStore
    slot: Tensor
    num_reads: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    def mark_first(self, num_tokens: int) -> None:
        """Count anew from the first token on."""
        if num_tokens == 1:
            self.num_reads, self.num_bytes, self.seconds = 0, 0, 0.0

    def read(self, expert: ExpertId) -> None:
        """Fill the slot."""
        begin = time.perf_counter()
        self.num_bytes += self.store.read(expert, self.slot)
        self.seconds += time.perf_counter() - begin
        self.num_reads += 1


class NoCacheExperts:
    """One layer's experts, see RoutedExperts."""

    def __init__(self, index: int, layer: ExpertLayer, reader: Reader, expander: Expander) -> None:
        self._index = index
        self._layer = layer
        self._reader = reader
        self._expander = expander

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See RoutedExperts."""
        tokens = tokens_of(self._layer, hidden, top_k_index, top_k_index)
        for index in tokens.experts:
            expert = ExpertId(self._index, index)
            self._reader.read(expert)
            stored = self._layer.layout.views(self._reader.slot, self._reader.store.starts(expert))
            tokens.apply({index: self._expander.weights(self._layer, stored)})
        return tokens.weighted_sum(top_k_weights)


class LoadedNoCache:
    """See LoadedArm."""

    def __init__(self, model: str) -> None:
        plan = read_plan(model)
        self._device = torch.device("cpu")
        loaded = load_model(plan, dtype=resolve_dtype("auto", plan.layers), device=self._device)
        self._loaded = loaded
        use_kernels(loaded.model)
        self._model = loaded.model
        slot_bytes = max(layer.layout.slot_bytes for layer in loaded.layers)
        self._reader = Reader(DiskStore(loaded.layers), page_aligned(slot_bytes))
        expander = Expander(loaded.layers, self._device)
        loaded.plug(lambda index, layer: NoCacheExperts(index, layer, self._reader, expander))

    def warm_up(self, job: Job) -> Answer:
        """See LoadedArm."""
        return self.answer(job)

    def answer(self, job: Job) -> Answer:
        """See LoadedArm."""
        reader = self._reader
        answer = answer_stepwise(self._model, self._device, job, TokenClock(reader.mark_first))
        return replace(answer, traffic=Traffic(0, reader.num_reads, reader.num_bytes, reader.seconds))

    def files(self) -> list[str]:
        """None but the checkpoint."""
        return []

    def close(self) -> None:
        """See LoadedArm."""
        self._reader.store.close()
        self._loaded.close()
