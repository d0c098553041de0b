"""What followed before will follow again: counts over the layers before, learned while serving.

Source: EdgeMoE (Yi et al. 2023): a dictionary from the experts of two layers to those of the next. With many
experts a token its keys hardly repeat; then pairs of experts decide, one of each layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from pgmoe.gating.counts import Key, PairCounts, RepeatCounts, Rows
from pgmoe.gating.history import Context, Histories, Seen
from pgmoe.routing import Prediction, Routing

KEY_LAYERS = 2


class Statistical:
    """Guesses the next layer, over the end of a step as well: the first layer of the step that comes.

    All that it remembers is bounded: pairs of layers, `num_keys` exact histories, `num_sequences` running
    ones. Counts never fade.
    """

    predicts = True
    limited = True
    exact = False
    reach = 1

    def __init__(
        self,
        experts_per_layer: Sequence[int],
        layers: Collection[int] | None = None,
        *,
        num_keys: int = 4096,
        num_sequences: int = 256,
    ) -> None:
        """`layers`: those that are guessed; all where None. Nothing is learned of the others."""
        self._num_experts = tuple(experts_per_layer)
        self._layers = range(len(self._num_experts)) if layers is None else frozenset(layers)
        self._histories = Histories(KEY_LAYERS + 1, num_sequences)
        self._pairs = PairCounts(experts_per_layer)
        self._repeats = RepeatCounts(num_keys)

    def begin(self, sequences: Sequence[str]) -> None:
        """See Gating."""
        self._histories.begin(sequences)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """None."""
        return None

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """See Gating."""
        now, *before = self._histories.add(routing.layer, routing.ids)
        if before and routing.layer in self._layers:
            self._learn(now, before)
        context = self._histories.context()
        if context is None or context.coming not in self._layers:
            return ()
        prediction = self._prediction(context)
        return (prediction,) if prediction.experts else ()

    def _learn(self, now: Seen, before: Sequence[Seen]) -> None:
        rows, later_rows = _paired(before[0], now)
        self._pairs.learn(before[0].layer, rows, now.layer, later_rows)
        if len(before) >= KEY_LAYERS and len(now.rows) == 1:
            used = [e for e in now.rows[0] if e < self._num_experts[now.layer]]
            self._repeats.learn(_key(before), now.layer, used)

    def _prediction(self, context: Context) -> Prediction:
        """The coming layer's likely experts, as many as the newest selection has."""
        newest, layer = context.seen[0], context.coming
        rows = newest.newest if context.next_step else newest.rows
        scores = self._pairs.scores(newest.layer, rows, layer)
        if len(rows) == 1 and len(context.seen) >= KEY_LAYERS:
            # Whole numbers, so an exact history outweighs pairs, and pairs fill up where it is short.
            for expert, times in self._repeats.followed(_key(context.seen), layer).items():
                scores[expert] += times
        likely = np.argsort(-scores, kind="stable")[: _num_distinct(rows)]
        experts = [int(e) for e in likely if scores[e] > 0]
        return Prediction(layer, tuple(experts), tuple(float(scores[e]) for e in experts))


def _paired(earlier: Seen, now: Seen) -> tuple[Rows, Rows]:
    """The rows of the same tokens; of two passes, the last token of the one and the first of the other.

    Where several sequences run a token each, those of one sequence belong together.
    """
    together = earlier.step == now.step or (earlier.apart and now.apart)
    if together and len(earlier.rows) == len(now.rows):
        return earlier.rows, now.rows
    return earlier.rows[-1:], now.rows[:1]


def _key(seen: Sequence[Seen]) -> Key:
    """The newest token's experts in the newest layers. Of one sequence: no row of another is mixed in."""
    return tuple((s.layer, tuple(sorted(s.rows[-1]))) for s in seen[:KEY_LAYERS])


def _num_distinct(rows: Rows) -> int:
    return len({e for row in rows for e in row})
