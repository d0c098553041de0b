"""What followed what: counts of experts that a layer used after others, learned while serving.

Shape letters: N tokens, E experts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import chain

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
        if (layer, later) not in self._counts:
            self._counts[layer, later] = np.zeros((num + 1, num_later + 1), np.uint32)
        a_NK = np.minimum(np.asarray(rows), num)  # the last row and column take in what stands for none
        b_NK = np.minimum(np.asarray(later_rows), num_later)
        np.add.at(self._counts[layer, later], (a_NK[:, :, None], b_NK[:, None, :]), 1)

    def scores(self, layer: int, rows: Rows, later: int) -> NDArray[np.float64]:
        """(E,), each below 1: how likely tokens that used `rows` use each expert of the later layer.

        The mean, over the experts in `rows`, of the share that each later expert has of what followed.
        """
        num, num_later = self._num_experts[layer], self._num_experts[later]
        counts = self._counts.get((layer, later))
        users = Counter(e for e in chain.from_iterable(rows) if e < num)
        if counts is None or not users:
            return np.zeros(num_later)
        followed = counts[list(users), :num_later]
        shares = followed / (followed.sum(1, keepdims=True) + 1)  # so that one occurrence is no certainty
        found: NDArray[np.float64] = np.array(list(users.values())) @ shares / users.total()
        return found


class RepeatCounts:
    """What exactly this history was followed by: a dictionary, of which the longest unused entries go.

    Source: EdgeMoE (Yi et al. 2023), whose history is the experts active in the two layers before. An entry
    holds a counter of at most E experts; with 8 experts a token it takes some 2 KB.
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
