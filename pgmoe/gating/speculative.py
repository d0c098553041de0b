"""The next MoE block's own router, asked early: a good guess, as a block changes its input only a little.

Source: Eliseev and Mazur 2023, "Fast Inference of Mixture-of-Experts Language Models with Offloading".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

from torch import Tensor

from pgmoe.gating.statistical import Statistical
from pgmoe.routing import Prediction, Routing


class Speculative:
    """Guesses layer i + 1 by its router on layer i's input; by statistics where no router can be asked.

    Those are the first layers of an encoder, a decoder and the next step.
    """

    predicts = True
    limited = True
    exact = False
    reach = 1

    def __init__(
        self,
        ahead: Sequence[Callable[[Tensor], Tensor] | None],
        experts_per_layer: Sequence[int],
    ) -> None:
        """`ahead[i]`: from layer i's input (N, D) to layer i + 1's ids (N, K) int64, or None.

        See `pgmoe.models.routers`.
        """
        self._ahead = tuple(ahead)
        self._num_experts = tuple(experts_per_layer)
        looked_at = {layer + 1 for layer, look in enumerate(ahead) if look is not None}
        others = [layer for layer in range(len(self._num_experts)) if layer not in looked_at]
        self._statistical = Statistical(experts_per_layer, others)

    def begin(self, sequences: Sequence[str]) -> None:
        """See Gating."""
        self._statistical.begin(sequences)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """See Gating."""
        ahead = self._ahead[layer]
        return None if ahead is None else ahead(hidden)

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """What the look-ahead chose, or what statistics say."""
        guessed = self._statistical.predict(routing)
        return (self._of_ahead(routing.layer + 1, routing.ahead),) if routing.ahead else guessed

    def _of_ahead(self, layer: int, ahead: Sequence[Sequence[int]]) -> Prediction:
        """Most tokens first; among experts of equally many, whom some token ranks higher, then the lower id.

        The score is the number of tokens, less a fraction for the rank.
        """
        num_tokens = Counter(e for e in chain.from_iterable(ahead) if e < self._num_experts[layer])
        rank: dict[int, int] = {}
        for k, column in enumerate(zip(*ahead, strict=True)):
            for expert in set(column):
                rank.setdefault(expert, k)
        top_k = len(ahead[0])
        score = {e: n - rank[e] / top_k for e, n in num_tokens.items()}
        experts = sorted(score, key=lambda e: (-score[e], e))
        return Prediction(layer, tuple(experts), tuple(score[e] for e in experts))
