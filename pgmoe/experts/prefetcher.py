"""From what a gating knows of coming layers to transfers that nobody has asked for yet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection

from torch import Tensor

from pgmoe.experts.limiter import PrefetchLimiter
from pgmoe.experts.pool import ExpertPool
from pgmoe.layout import ExpertId
from pgmoe.metrics.stats import ExpertStats
from pgmoe.routing import Gating, Prediction, Routing

UNLIMITED = float("inf")


class Prefetcher:
    """One gating's predictions, followed within what the limiter allows. For the computing thread alone.

    Exact selections are ordered at once. Guesses get what the link carries in the time that a layer computes,
    one expert at a time where that is less, and nothing while they do not pay.
    """

    def __init__(
        self,
        gating: Gating,
        pool: ExpertPool,
        limiter: PrefetchLimiter,
        weight_bytes: int,
        stats: ExpertStats,
    ) -> None:
        """`weight_bytes`: of one expert, as outcomes are counted."""
        self._gating = gating
        self._pool = pool
        self._limiter = limiter
        self._weight_bytes = weight_bytes
        self._stats = stats
        self._layer_began: tuple[float, float] | None = None  # with the stall so far
        self._booked: Counter[str] = Counter()
        self._attentive = True
        self._resting = False
        self._sampling = False
        self._shadows: dict[int, frozenset[ExpertId]] = {}
        stats.prefetch_on = True

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """A layer begins with this expert input (N, D): see Gating.look_ahead. None where that is idle."""
        self._observe()
        self._sampling = self._gating.limited and self._limiter.sample()
        self._resting = self._gating.limited and self._limiter.on and self._limiter.resting
        guessing = self._limiter.on and not self._resting
        self._stats.prefetch_on = guessing or not self._gating.limited
        self._attentive = self._stats.prefetch_on or self._sampling
        return self._gating.look_ahead(layer, hidden) if self._attentive else None

    def follow(self, routing: Routing, selected: Collection[int]) -> None:
        """This layer's experts are known and ordered: order what comes next, as far as that is allowed."""
        self._score_shadow(routing.layer, selected)
        if self._resting:  # then the gating learns nothing either: that is most of what it costs
            return
        predictions = self._gating.predict(routing)
        if not self._attentive:
            return
        for prediction in predictions:
            if self._sampling:
                self._keep_shadow(prediction)
            else:
                self._order(prediction)

    def _order(self, prediction: Prediction) -> None:
        limit = UNLIMITED
        if self._gating.limited and not prediction.exact:
            under_way = self._pool.guessed_bytes_under_way
            limit = self._limiter.allowance(under_way)
            if self._limiter.on and not under_way:  # one at a time, where a layer is shorter than a copy
                limit = max(limit, self._weight_bytes)
        self._pool.prefetch(prediction.layer, prediction.experts, exact=prediction.exact, max_bytes=limit)

    def _observe(self) -> None:
        """Tell the limiter how long the last layer took, and what became of guesses."""
        now, stall_s = time.perf_counter(), self._stats.stall_s
        if self._layer_began is not None:
            began, stall_then = self._layer_began
            self._limiter.observe_layer(now - began, stall_s - stall_then)
        self._layer_began = (now, stall_s)
        for outcome, tell in (
            ("useful", self._limiter.useful),
            ("late", self._limiter.late),
            ("wasted", self._limiter.wasted),
        ):
            while self._booked[outcome] < self._stats.prefetch_bytes[outcome]:
                self._booked[outcome] += self._weight_bytes
                tell(self._weight_bytes)
        self._stats.prefetch_switches = self._limiter.num_switches

    def _keep_shadow(self, prediction: Prediction) -> None:
        """Remember what would have been fetched."""
        experts = [ExpertId(prediction.layer, e) for e in prediction.experts]
        self._shadows[prediction.layer] = frozenset(e for e in experts if self._pool.is_missing(e))

    def _score_shadow(self, layer: int, selected: Collection[int]) -> None:
        for expert in self._shadows.pop(layer, ()):
            self._limiter.shadow(self._weight_bytes, expert.expert in selected)
