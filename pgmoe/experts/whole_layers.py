"""When the next layer is fetched whole, before it is known what of it will be used. Pure: told what happened.

Shape letters: E experts of a layer, K experts per token, N tokens of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pgmoe.routing import Prediction

_RATE = 0.1
"""How much one layer's turn weighs in what is known of its routing."""


class WholeLayers:
    """Weighs bytes fetched in vain against the time in which the link has nothing to do.

    A layer takes as long as the slower of link and compute (MoE-Lightning, Cao et al. 2024, arXiv 2411.11217,
    section 4: T = max(communication, compute)) only if the link never waits for a selection: with d of E
    experts in use, m of them missing, of b bytes each, over a link of B bytes/s, choosing takes
    t + d/E m b/B, where t is how long the link idles until the selection is known, and fetching all of them
    m b/B. So all are fetched where m b (1 - d/E) <= t B. d is E (1 - (1 - K/E)^N), by uniform routing, times
    what real routing was seen to use of that. For t stands the time that the layer before computed, more than
    it is: in most passes of so many tokens the other side is next to nothing.
    """

    def __init__(self, experts_per_layer: Sequence[int], top_k: Sequence[int], weight_bytes: int) -> None:
        """`top_k`: of each layer, too; `weight_bytes`: of one expert."""
        self._num_experts = tuple(experts_per_layer)
        self._top_k = tuple(top_k)
        self._weight_bytes = weight_bytes
        self._evenness = [1.0] * len(self._num_experts)
        self._least_tokens = max(
            math.ceil(experts / k) for experts, k in zip(self._num_experts, self._top_k, strict=True)
        )

    def concerns(self, num_tokens: int) -> bool:
        """Whether a pass has so many tokens that each expert of each layer may expect one at least.

        With fewer, fetching all would push out what single tokens use.
        """
        return num_tokens >= max(2, self._least_tokens)

    def observe(self, layer: int, num_tokens: int, num_used: int) -> None:
        """A layer used so many distinct experts, in a pass of a size that concerns."""
        share = min(1.0, num_used / self._uniform(layer, num_tokens))
        self._evenness[layer] += _RATE * (share - self._evenness[layer])

    def all_of(self, likeliest: Prediction) -> list[int]:
        """All experts of a layer, those that are guessed first."""
        guessed = likeliest.experts
        others = set(range(self._num_experts[likeliest.layer])).difference(guessed)
        return [*guessed, *sorted(others)]

    def pays(self, layer: int, num_tokens: int, num_missing: int, idle_bytes: float) -> bool:
        """Whether to fetch all that is missing of this layer, which comes next in a pass of so many tokens.

        `idle_bytes`: what the link carries while a layer computes (t B).
        """
        if not self.concerns(num_tokens):
            return False
        used = self._evenness[layer] * self._uniform(layer, num_tokens)
        return num_missing * self._weight_bytes * (1 - used / self._num_experts[layer]) <= idle_bytes

    def _uniform(self, layer: int, num_tokens: int) -> float:
        return expected_distinct(self._num_experts[layer], self._top_k[layer], num_tokens)


def expected_distinct(num_experts: int, top_k: int, num_tokens: int) -> float:
    """Experts of a layer that a batch of tokens uses, if routing is uniform: E (1 - (1 - k/E)^N)."""
    return num_experts * (1 - (1 - top_k / num_experts) ** num_tokens)
