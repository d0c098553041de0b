"""The routed experts of one MoE layer, computed from whatever slots they are in.

Shape letters: N tokens, K experts per token, D model width.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from pgmoe.experts.footprints import Footprints
from pgmoe.experts.ledger import Ledger
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.tokens import tokens_of
from pgmoe.layout import ExpertLayer
from pgmoe.routing import Routing


class PooledExperts:
    """Computes one layer's experts in the order in which they are ready, and adds them up in ascending order.

    So the result does not depend, to the bit, on which experts were resident.
    """

    def __init__(
        self,
        index: int,
        layer: ExpertLayer,
        pool: ExpertPool,
        prefetcher: Prefetcher,
        ledger: Ledger,
        footprints: Footprints | None = None,
    ) -> None:
        self._index = index
        self._layer = layer
        self._pool = pool
        self._prefetcher = prefetcher
        self._ledger = ledger
        self._footprints = footprints
        self._announced: tuple[Tensor, Tensor] | None = None
        """What was announced last and has not been computed yet: as it came, and on the host."""

    def announce(self, top_k_index: Tensor) -> None:
        """This layer has chosen (N, K) int64 and is called with these very ids after its attention.

        Where the gating takes exact selections they are ordered now: the host waits for the device here and
        not once more at the layer's turn. Where it takes none, nothing is done.
        """
        if not self._prefetcher.wants_selections:
            return
        ids_NK = top_k_index.cpu()
        self._announced = top_k_index, ids_NK
        num_experts = self._layer.num_experts
        used = Counter(e for e in ids_NK.flatten().tolist() if e < num_experts)
        self._prefetcher.select(self._index, used)

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden (N, D), top_k_index (N, K) int64, top_k_weights (N, K) -> (N, D) in hidden's dtype.

        A token's entries of top_k_index are distinct; those at or above the number of experts are skipped.
        Not differentiable. Raises ExpertReadError.
        """
        ids_NK, ahead_NK = self._on_host(hidden, top_k_index)
        tokens = tokens_of(self._layer, hidden, top_k_index, ids_NK)
        with self._pool.lease(self._index, tokens.experts, tokens.at_once) as lent:
            if self._prefetcher.predicts:  # the missing ones are ordered, so that what comes next may be
                ahead = () if ahead_NK is None else ahead_NK.tolist()
                routing = Routing(self._index, ids_NK.tolist(), top_k_weights, ahead)
                self._prefetcher.follow(routing, tokens.experts)
            for batch in lent:
                tokens.apply({expert.index: expert.weights for expert in batch})
        out = tokens.weighted_sum(top_k_weights)
        self._ledger.enter(self._index, ids_NK, self._pool.missed)
        if self._footprints is not None:
            self._footprints.enter(self._index, ids_NK)
        return out

    def _on_host(self, hidden: Tensor, top_k_index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layer's ids, and those that the gating looks ahead to, if any.

        The host waits for the device once a layer: here, or when the ids were announced.
        """
        ahead = self._prefetcher.look_ahead(self._index, hidden)
        announced, self._announced = self._announced, None
        if announced is not None and announced[0] is top_k_index and ahead is None:
            return announced[1], None
        return _to_host(top_k_index, ahead)


def _to_host(ids_NK: Tensor, ahead_NK: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both on the host, which waits for the device once."""
    if ahead_NK is None:
        return ids_NK.cpu(), None
    both = torch.cat([ids_NK, ahead_NK], dim=1).cpu()
    return both[:, : ids_NK.shape[1]], both[:, ids_NK.shape[1] :]
