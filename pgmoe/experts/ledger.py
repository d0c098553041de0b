"""Which sequence of a pass found its experts in slots, and which did not.

Shape letters: N tokens, K experts per token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass
class Uses:
    """Of one sequence: experts of a layer that its tokens used, each once a layer and pass."""

    hits: int = 0
    """Found in a slot."""
    misses: int = 0
    """Not there yet when the layer's turn came."""


class Ledger:
    """Told of each pass and of each layer in it; read by whoever bills. For the computing thread alone."""

    def __init__(self) -> None:
        self._uses: dict[str, Uses] = {}
        self._sequences: tuple[str, ...] = ()
        self._owners_N = np.zeros(0, np.int64)

    def begin(self, sequences: Sequence[str], num_tokens: Sequence[int]) -> None:
        """A pass of these sequences' tokens begins, so many of each in this order."""
        self._sequences = tuple(sequences)
        self._owners_N = np.repeat(np.arange(len(sequences)), num_tokens)
        for sequence in sequences:
            self._uses.setdefault(sequence, Uses())

    def enter(self, ids_NK: Tensor, num_experts: int, missing: Collection[int]) -> None:
        """A layer used these experts (on the host; those at or above `num_experts` stand for none)."""
        ids = ids_NK.numpy()
        if len(ids) != len(self._owners_N):  # a pass that nobody announced, of who runs the model by himself
            return
        owners_NK = np.broadcast_to(self._owners_N[:, None], ids.shape)[ids < num_experts]
        used = np.unique(owners_NK * num_experts + ids[ids < num_experts])
        missed = np.isin(used % num_experts, list(missing))
        counts = np.bincount(used // num_experts, minlength=len(self._sequences))
        misses = np.bincount(used[missed] // num_experts, minlength=len(self._sequences))
        for sequence, num_used, num_missed in zip(self._sequences, counts, misses, strict=True):
            uses = self._uses[sequence]
            uses.hits += int(num_used - num_missed)
            uses.misses += int(num_missed)

    def take(self) -> dict[str, Uses]:
        """What was entered since the last time, by sequence; the pass is over."""
        taken, self._uses = self._uses, {}
        self._sequences, self._owners_N = (), np.zeros(0, np.int64)
        return taken
