"""What followed what: counts of experts that a layer used after others, learned while serving.

Shape letters: N tokens, E experts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Sequence[int]]
"""(N, K) expert ids; those at or above the number of experts stand for none."""
Key = tuple[tuple[int, tuple[int, ...]], ...]
"""Layers, each with the experts used there, in ascending order."""


class PairCounts:
    """How often a token that used expert a of one layer used expert b of a later one.

    Takes 4 * E * E bytes for each pair of layers that was learned.
    """

    def __init__(self, experts_per_layer: Sequence[int]) -> None:
        self._num_experts = tuple(experts_per_layer)
        self._counts: dict[tuple[int, int], NDArray[np.uint32]] = {}

    def learn(self, layer: int, rows: Rows, later: int, later_rows: Rows) -> None:
        """Token by token, `later_rows` came after `rows`; as many of both."""
        num, num_later = self._num_experts[layer], self._num_experts[later]
        counts = self._counts.setdefault((layer, later), np.zeros((num + 1, num_later + 1), np.uint32))
        a_NK = np.minimum(np.asarray(rows), num)  # the last row and column take in what stands for none
        b_NK = np.minimum(np.asarray(later_rows), num_later)
        np.add.at(counts, (a_NK[:, :, None], b_NK[:, None, :]), 1)

    def scores(self, layer: int, rows: Rows, later: int) -> NDArray[np.float64]:
        """(E,), each below 1: how likely tokens that used `rows` use each expert of the later layer.

        The mean, over the experts in `rows`, of the share that each later expert has of what followed.
        """
        num, num_later = self._num_experts[layer], self._num_experts[later]
        counts = self._counts.get((layer, later))
        experts, times = np.unique(np.asarray(rows), return_counts=True)
        known = experts < num
        if counts is None or not known.any():
            return np.zeros(num_later)
        experts, times = experts[known], times[known]
        followed = counts[experts, :num_later].astype(np.float64)
        shares = followed / (followed.sum(1, keepdims=True) + 1)  # so that one occurrence is no certainty
        found: NDArray[np.float64] = times @ shares / times.sum()
        return found


class RepeatCounts:
    """What exactly this history was followed by: a dictionary, of which the longest unused entries go.

    Source: EdgeMoE (Yi et al. 2023), whose history is the experts active in the two layers before. An entry
    holds a counter of at most E experts, so `num_keys` of them take some 2 KB each with 8 experts a token.
    """

    def __init__(self, num_keys: int) -> None:
        self._num_keys = num_keys
        self._followed: OrderedDict[tuple[Key, int], Counter[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._followed)

    def learn(self, key: Key, layer: int, experts: Sequence[int]) -> None:
        """After `key`, `layer` used these."""
        counter = self._followed.setdefault((key, layer), Counter())
        counter.update(experts)
        self._followed.move_to_end((key, layer))
        if len(self._followed) > self._num_keys:
            self._followed.popitem(last=False)

    def followed(self, key: Key, layer: int) -> Counter[int]:
        """How often each expert of `layer` followed; empty where the key is unknown. Changes nothing."""
        return self._followed.get((key, layer), Counter())
