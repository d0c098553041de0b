"""A prefetcher between a gating that does as it is told and a pool whose link has a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgmoe.experts.cache import SlotState
from pgmoe.experts.limiter import PrefetchLimiter
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.trust import GuessTrust, TrustRules
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.routing import Prediction, Routing
from tests.support.expert_files import PoolParts
from tests.support.routings import routing
from tests.support.transfers import FakeClock

Layers = tuple[ExpertLayer, ...]
RULES = TrustRules(window=4, sample_every=2)


class Scripted:
    """Says what it is told to say next."""

    def __init__(self, *, limited: bool = True, exact: bool = False) -> None:
        self.predicts = True
        self.limited = limited
        self.exact = exact
        self.reach = 1
        self.says: Sequence[Prediction] = ()
        self.asked = 0
        self.looked_ahead = 0

    def begin(self, sequences: Sequence[str]) -> None: ...

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        self.looked_ahead += 1
        return hidden

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        self.asked += 1
        return self.says


class Rig:
    """Layers that use what they are told to, one after the other; an expert takes a second."""

    def __init__(
        self,
        layers: Layers,
        store: DiskStore,
        num_slots: int,
        *,
        limited: bool = True,
        exact: bool = False,
    ) -> None:
        self.clock, self.gating = FakeClock(), Scripted(limited=limited, exact=exact)
        self.parts = PoolParts(layers, store, num_slots, clock=self.clock)
        self.size = layers[0].layout.weight_bytes
        self.limiter = PrefetchLimiter(1.0)  # so slow that a layer's time carries not one byte
        self.trust, self.stats = GuessTrust(RULES), self.parts.stats
        self.prefetcher = Prefetcher(
            self.gating, self.parts.pool, self.limiter, self.trust, self.size, self.stats
        )

    def layer(self, layer: int, uses: Sequence[int], *says: Prediction) -> Tensor | None:
        """One layer computes; what its look-ahead gave."""
        self.gating.says = says
        ahead = self.prefetcher.look_ahead(layer, torch.zeros(1, 2))
        with self.parts.pool.lease(layer, uses) as lent:
            if self.prefetcher.predicts:
                self.prefetcher.follow(routing(layer, uses), uses)
            for _ in lent:
                pass
        self.parts.pool.check_integrity()
        return ahead

    def prompt(self, layer: int, uses: Sequence[int], *says: Prediction) -> None:
        """The same for several tokens, each of which uses one of the experts."""
        self.gating.says = says
        self.prefetcher.look_ahead(layer, torch.zeros(len(uses), 2))
        distinct = sorted(set(uses))
        ahead = [[says[0].experts[0]]] * len(uses) if says else ()
        with self.parts.pool.lease(layer, distinct) as lent:
            self.prefetcher.follow(routing(layer, *([e] for e in uses), ahead=ahead), distinct)
            for _ in lent:
                pass

    def coming(self) -> set[ExpertId]:
        return self.parts.in_state(SlotState.IN_FLIGHT)

    def settle(self) -> None:
        """All that is under way has arrived."""
        self.clock.time += 100.0

    def err(self, times: int) -> None:
        """A guess for layer 1 that is wrong, so often."""
        for _ in range(times):
            self.layer(0, [0], guess(1, 0))
            self.settle()
            self.layer(1, [1, 2, 3])  # all slots that there are


def guess(layer: int, *experts: int) -> Prediction:
    return Prediction(layer, experts, tuple(1.0 for _ in experts))


def exact(layer: int, *experts: int) -> Prediction:
    return Prediction(layer, experts, tuple(1.0 for _ in experts), exact=True)
