"""Which sequence of a pass found its experts in slots, and which did not.

Shape letters: N tokens, K experts per token, S sequences of a pass, L MoE layers, G of them with the same K,
E experts of the largest layer and one more place, for ids that stand for none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Uses:
    """Of one sequence: experts of a layer that its tokens used, each once a layer and pass."""

    hits: int = 0
    """Found in a slot."""
    misses: int = 0
    """Not there yet when the layer's turn came."""


class Ledger:
    """Told of each pass and of each layer in it; read by whoever bills. For the computing thread alone.

    What layers enter is counted once a pass: many small counts would take longer than a layer's other books.
    """

    def __init__(self, experts_per_layer: Sequence[int]) -> None:
        self._padding_L = np.array(experts_per_layer)
        """By layer the place for ids of no expert."""
        self._shape = len(experts_per_layer), max(experts_per_layer) + 1
        self._uses: dict[str, Uses] = {}
        self._begin_pass((), ())

    @staticmethod
    def num_bytes(
        num_sequences: int, num_tokens: int, experts_per_layer: Sequence[int], top_ks: Sequence[int]
    ) -> int:
        """Most that a pass of so many takes beside the ids: a table, a copy, those looked ahead to."""
        table = (num_sequences + 1) * len(experts_per_layer) * (max(experts_per_layer) + 1)
        return table + 16 * num_tokens * sum(top_ks)

    def begin(self, sequences: Sequence[str], num_tokens: Sequence[int]) -> None:
        """A pass of these sequences' tokens begins, so many of each in this order."""
        self._count()
        self._begin_pass(sequences, num_tokens)
        for sequence in sequences:
            self._uses.setdefault(sequence, Uses())

    def enter(self, layer: int, ids_NK: Tensor, missing: Collection[int]) -> None:
        """A layer used these experts (on the host; those at or above its number stand for none).

        Nobody may write to the ids before the pass is over: a copy would take longer than all the rest.
        """
        if len(ids_NK) == self._num_tokens:  # who runs the model by himself does not announce the pass
            layers, kept = self._entries.setdefault(ids_NK.shape[1], ([], []))
            layers.append(layer)
            kept.append(ids_NK)
            if missing:
                self._missing_LE[layer, [*missing]] = True

    def take(self) -> dict[str, Uses]:
        """What was entered since the last time, by sequence; the pass is over."""
        self._count()
        taken, self._uses = self._uses, {}
        self._begin_pass((), ())
        return taken

    def _begin_pass(self, sequences: Sequence[str], num_tokens: Sequence[int]) -> None:
        self._sequences, self._num_tokens = tuple(sequences), sum(num_tokens)
        self._owners_N = np.repeat(np.arange(len(sequences)), num_tokens)
        self._entries: dict[int, tuple[list[int], list[Tensor]]] = {}
        self._missing_LE = np.zeros(self._shape, bool)

    def _count(self) -> None:
        """Each expert once for each sequence and layer."""
        used_SLE = np.zeros((len(self._sequences), *self._shape), bool)
        for layers, kept in self._entries.values():
            ids_GNK, padding_G = torch.stack(kept).numpy(), self._padding_L[layers]
            place_GNK = np.minimum(ids_GNK, padding_G[:, None, None], out=ids_GNK)
            used_SLE[self._owners_N[:, None], np.array(layers)[:, None, None], place_GNK] = True
            used_SLE[:, layers, padding_G] = False
        counts_S = np.count_nonzero(used_SLE, axis=(1, 2)).tolist()
        used_SLE &= self._missing_LE
        misses_S = np.count_nonzero(used_SLE, axis=(1, 2)).tolist()
        for sequence, num_used, num_missed in zip(self._sequences, counts_S, misses_S, strict=True):
            uses = self._uses[sequence]
            uses.hits += num_used - num_missed
            uses.misses += num_missed
