"""Routed experts the plain way: all weights in memory, one expert after another. What others must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.layout import ExpertFFN
from pgmoe.models.socket import ExpertSocket


class InMemoryExperts:
    """The experts of one layer; `used` collects which of them were ever computed."""

    def __init__(self, experts: Sequence[Mapping[str, Tensor]], ffn: ExpertFFN) -> None:
        self.experts = experts
        self.ffn = ffn
        self.used: set[int] = set()

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See RoutedExperts."""
        out = torch.zeros_like(hidden)
        for expert in top_k_index.unique().tolist():
            if expert >= len(self.experts):
                continue
            self.used.add(expert)
            token, choice = torch.where(top_k_index == expert)
            y = self._compute(self.experts[expert], hidden[token])
            out.index_add_(0, token, (y * top_k_weights[token, choice, None]).to(out.dtype))
        return out

    def _compute(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        assert not self.ffn.transposed
        y = self.ffn.activation(functional.linear(x, weights["up"], weights.get("up_bias")))
        y = functional.linear(y, weights["down"], weights.get("down_bias"))
        if self.ffn.post_norm is not None:
            y = self.ffn.post_norm(y)
        return y if self.ffn.output_scale == 1.0 else y * self.ffn.output_scale


def plug_in_memory(sockets: Sequence[ExpertSocket], weights: Mapping[str, Tensor]) -> list[InMemoryExperts]:
    """Give every socket its experts out of a state dict with one tensor for each expert."""
    plugged = []
    for socket in sockets:
        experts = [
            {tensor: weights[key.format(e)] for tensor, key in socket.keys.items()}
            for e in range(socket.num_experts)
        ]
        for expert in experts:
            assert {tensor: tuple(w.shape) for tensor, w in expert.items()} == socket.shapes
        plugged.append(InMemoryExperts(experts, socket.ffn))
        socket.module.routed_experts = plugged[-1]
    return plugged
