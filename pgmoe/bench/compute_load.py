"""A core's worth of what decoding computes: one token through experts that lie in memory."""

from __future__ import annotations

import time
from itertools import count

import torch
from torch import Tensor

from pgmoe.experts.ffn import Weights
from pgmoe.experts.slots import SlotArena
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.tokens import tokens_of
from pgmoe.layout import ExpertId, ExpertLayer

NUM_RESIDENT = 64
"""Experts that compute goes round, so that weights come from memory and not from a processor's cache."""


class ComputeLoad:
    """Experts read once, then computed again and again by the calling thread."""

    def __init__(self, layers: tuple[ExpertLayer, ...], store: ExpertStore) -> None:
        """Of the first layer."""
        self._layer = layers[0]
        num_resident = min(NUM_RESIDENT, self._layer.num_experts)
        self._arena = SlotArena(num_resident, self._layer.layout.slot_bytes, torch.device("cpu"))
        self._weights: list[Weights] = []
        for index in range(num_resident):
            slot = self._arena.slot(index)
            store.read(ExpertId(0, index), slot)
            self._weights.append(self._layer.layout.views(slot, store.starts(ExpertId(0, index))))
        (width,) = {
            r.shape[0 if self._layer.ffn.transposed else 1]
            for r in self._layer.layout.regions
            if r.name == "up"
        }
        self._x_1D: Tensor = torch.randn(1, width).to(self._layer.dtype)

    @torch.inference_mode()
    def run(self, seconds: float) -> float:
        """Tokens per second through one layer, computed for about so long."""
        top_k, num_resident = self._layer.top_k, len(self._weights)
        weights_1K = torch.ones(1, top_k, dtype=self._x_1D.dtype)
        begin = time.perf_counter()
        for turn in count(1):
            chosen = torch.tensor([[(turn * top_k + k) % num_resident for k in range(top_k)]])
            token = tokens_of(self._layer, self._x_1D, chosen, chosen)
            token.apply({expert: self._weights[expert] for expert in token.experts})
            token.weighted_sum(weights_1K)
            elapsed = time.perf_counter() - begin
            if elapsed >= seconds:
                return turn / elapsed
        raise AssertionError  # count() has no end
