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
    """Told of each pass and of each layer in it; read by whoever bills. For the computing thread alone.

    What layers enter is counted once a pass: many small counts would take longer than a layer's other books.
    """

    def __init__(self) -> None:
        self._uses: dict[str, Uses] = {}
        self._sequences: tuple[str, ...] = ()
        self._owners_N = np.zeros(0, np.int64)
        self._entries: list[tuple[np.ndarray, int, Collection[int]]] = []

    def begin(self, sequences: Sequence[str], num_tokens: Sequence[int]) -> None:
        """A pass of these sequences' tokens begins, so many of each in this order."""
        self._count()
        self._sequences = tuple(sequences)
        self._owners_N = np.repeat(np.arange(len(sequences)), num_tokens)
        for sequence in sequences:
            self._uses.setdefault(sequence, Uses())

    def enter(self, ids_NK: Tensor, num_experts: int, missing: Collection[int]) -> None:
        """A layer used these experts (on the host; those at or above `num_experts` stand for none)."""
        if len(ids_NK) == len(self._owners_N):  # or nobody announced the pass: who runs the model by himself
            self._entries.append((ids_NK.numpy().astype(np.int32), num_experts, frozenset(missing)))

    @staticmethod
    def num_bytes(num_tokens: int, top_ks: Sequence[int]) -> int:
        """Of a pass of so many tokens, before it is counted."""
        return 4 * num_tokens * sum(top_ks)

    def take(self) -> dict[str, Uses]:
        """What was entered since the last time, by sequence; the pass is over."""
        self._count()
        taken, self._uses = self._uses, {}
        self._sequences, self._owners_N = (), np.zeros(0, np.int64)
        return taken

    def _count(self) -> None:
        """Each expert once for each sequence and layer."""
        entries, self._entries = self._entries, []
        if not entries:
            return
        num_sequences, widest = len(self._sequences), max(num_experts for _, num_experts, _ in entries)
        used = np.concatenate([self._used(n, *entry[:2], widest) for n, entry in enumerate(entries)])
        missing = [n * widest + e for n, (_, _, missing) in enumerate(entries) for e in missing]
        owners = used // widest % num_sequences
        experts = used // (widest * num_sequences) * widest + used % widest
        counts = np.bincount(owners, minlength=num_sequences).tolist()
        misses = np.bincount(owners[np.isin(experts, missing)], minlength=num_sequences).tolist()
        for sequence, num_used, num_missed in zip(self._sequences, counts, misses, strict=True):
            uses = self._uses[sequence]
            uses.hits += num_used - num_missed
            uses.misses += num_missed

    def _used(self, layer: int, ids_NK: np.ndarray, num_experts: int, widest: int) -> np.ndarray:
        """(layer, sequence, expert) as one number each, all distinct."""
        marks = (layer * len(self._sequences) + self._owners_N[:, None]) * widest + ids_NK
        return np.unique(marks[ids_NK < num_experts])
