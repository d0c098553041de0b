"""From what a gating knows of coming layers to transfers that nobody has asked for yet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from pgmoe.experts.limiter import PrefetchLimiter
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.trust import GuessTrust, grade_of
from pgmoe.experts.whole_layers import WholeLayers
from pgmoe.layout import ExpertId
from pgmoe.metrics.stats import ExpertStats
from pgmoe.routing import Gating, Prediction, Routing

UNLIMITED = float("inf")


class Prefetcher:
    """One gating's predictions, followed within what trust and limiter allow. For the computing thread alone.

    Exact selections are ordered at once. Of guesses, those that are trusted get what the link carries in the
    time that a layer computes, one expert at a time where that is less. Only passes of one token are judged:
    many tokens use most experts, whatever was guessed, and say nothing of the next single one. So many that
    it does not pay to choose get all of the next layer.
    """

    def __init__(
        self,
        gating: Gating,
        pool: ExpertPool,
        limiter: PrefetchLimiter,
        trust: GuessTrust,
        weight_bytes: int,
        stats: ExpertStats,
        whole: WholeLayers | None = None,
    ) -> None:
        """`weight_bytes`: of one expert. Without `whole` no layer is fetched whole."""
        self._gating = gating
        self._pool = pool
        self._limiter = limiter
        self._trust = trust
        self._weight_bytes = weight_bytes
        self._stats = stats
        self._whole = whole if gating.limited and not gating.exact else None
        self._began: tuple[int, float, float] | None = None
        """The layer under way, when it began, and the stall until then."""
        self._computed_s = 0.0
        """How long the layer before it in the same pass computed; 0 for a first one."""
        self._resting = False
        self._attentive = True
        self._guessed: dict[int, list[tuple[int, int]]] = {}
        """By layer: (grade, expert) of what was guessed and missing then."""
        stats.prefetch_on = gating.predicts

    @property
    def predicts(self) -> bool:
        """Whether anything follows from what layers choose."""
        return self._gating.predicts

    @property
    def wants_selections(self) -> bool:
        """Whether layers that choose early are to say so: see `select`."""
        return self._gating.predicts and self._gating.exact

    def select(self, layer: int, experts: Counter[int]) -> None:
        """This layer will use these experts, by number of tokens, at its turn, which comes next: order them.

        Those of most tokens first. Only for a gating that wants it.
        """
        used = [expert for expert, _ in experts.most_common()]
        self._pool.prefetch(layer, used, exact=True, max_bytes=UNLIMITED)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """A layer begins with this expert input (N, D): see Gating.look_ahead. None where that is idle."""
        if not self._gating.predicts:
            return None
        self._observe(layer, lone=len(hidden) == 1)
        limited, exact = self._gating.limited, self._gating.exact
        self._resting = limited and self._limiter.resting
        guessing = not limited or (self._trust.on and not self._resting)
        self._attentive = guessing or (not self._resting and self._trust.sample())
        self._stats.prefetch_on = guessing or exact
        asked = self._attentive or exact or self._whole_in(len(hidden)) is not None
        return self._gating.look_ahead(layer, hidden) if asked else None

    def follow(self, routing: Routing, selected: Collection[int]) -> None:
        """This layer's experts are known and ordered: order what comes next, as far as that is allowed.

        Only for a gating that predicts.
        """
        num_tokens = len(routing.ids)
        guessed, lone = self._guessed.pop(routing.layer, ()), num_tokens == 1
        for grade, expert in guessed if lone else ():
            self._trust.score(grade, expert in selected)
        self._stats.prefetch_switches = self._trust.num_switches
        whole = self._whole_in(num_tokens)
        if whole is not None:
            whole.observe(routing.layer, num_tokens, len(selected))
        elif self._resting and not self._gating.exact:  # learning what to guess is most of what it costs
            return
        for prediction in self._gating.predict(routing):
            if prediction.exact or not self._gating.limited:
                self._order(prediction, prediction.experts, UNLIMITED)
            elif whole is not None and routing.ahead and self._pays(whole, prediction.layer, num_tokens):
                self._order(prediction, whole.all_of(prediction), UNLIMITED)
            elif self._resting or not self._attentive:
                continue
            elif lone:
                self._order(prediction, self._trusted(prediction), self._limit())
            elif self._trust.on:
                self._order(prediction, prediction.experts, self._limit())

    def _whole_in(self, num_tokens: int) -> WholeLayers | None:
        """What weighs fetching whole layers in a pass of so many tokens; None where there are too few."""
        return self._whole if self._whole is not None and self._whole.concerns(num_tokens) else None

    def _pays(self, whole: WholeLayers, layer: int, num_tokens: int) -> bool:
        """Whether to order all of this layer. It was looked at ahead, so it comes in the same pass."""
        idle_bytes = self._limiter.bandwidth * self._computed_s
        return whole.pays(layer, num_tokens, self._pool.num_missing(layer), idle_bytes)

    def _trusted(self, prediction: Prediction) -> Sequence[int]:
        """Those worth fetching. All that are missing are remembered, to be scored when their layer comes."""
        layer, num_places = prediction.layer, len(prediction.experts)
        graded = [(grade_of(place, num_places), e) for place, e in enumerate(prediction.experts)]
        self._guessed[layer] = [(g, e) for g, e in graded if self._pool.is_missing(ExpertId(layer, e))]
        return [e for g, e in graded if self._trust.trusts(g)]

    def _limit(self) -> float:
        """Bytes for guesses now; one expert at least where none is under way."""
        under_way = self._pool.guessed_bytes_under_way
        allowance = self._limiter.allowance(under_way)
        return allowance if under_way else max(allowance, self._weight_bytes)

    def _order(self, prediction: Prediction, experts: Sequence[int], limit: float) -> None:
        if experts:
            self._pool.prefetch(prediction.layer, experts, exact=prediction.exact, max_bytes=limit)

    def _observe(self, layer: int, *, lone: bool) -> None:
        """Tell the limiter how long the layer before took; nothing between two passes, where requests end."""
        now, stall_s = time.perf_counter(), self._stats.stall_s
        self._computed_s = 0.0
        if self._began is not None and layer > self._began[0]:
            _, began, stall_then = self._began
            self._limiter.observe_layer(now - began, stall_s - stall_then, lone=lone)
            self._computed_s = max(0.0, now - began - (stall_s - stall_then))
        self._began = (layer, now, stall_s)
