"""When the next layer is fetched whole, before it is known what of it will be used. Pure: told what happened.

Shape letters: E experts of a layer, K experts per token, N tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgmoe.routing import Prediction, expected_distinct

_RATE = 0.1
"""How much one layer's turn weighs in what is known of its routing."""


class WholeLayers:
    """Weighs bytes fetched in vain against the time in which the link has nothing to do.

    A layer takes as long as the slower of link and compute (MoE-Lightning, Cao et al. 2024, arXiv 2411.11217,
    section 4: T = max(communication, compute)) only if the link never waits for a selection: with d of E
    experts in use, m of them missing, of b bytes each, over a link of B bytes/s, choosing takes
    t + d/E m b/B, where t is how long the link idles until the selection is known, and fetching all of them
    m b/B. So all are fetched where m b (1 - d/E) <= t B. d is E (1 - (1 - K/E)^N), by uniform routing, times
    what real routing was seen to use of that. For t stands the time that a layer computes, more than it is:
    for most passes of so many tokens the other side is next to nothing.
    """

    def __init__(self, experts_per_layer: Sequence[int], top_k: Sequence[int], weight_bytes: int) -> None:
        """`top_k`: of each layer, too; `weight_bytes`: of one expert."""
        self._num_experts = tuple(experts_per_layer)
        self._top_k = tuple(top_k)
        self._weight_bytes = weight_bytes
        self._evenness = [1.0] * len(self._num_experts)

    def observe(self, layer: int, num_tokens: int, num_used: int) -> None:
        """A layer used so many distinct experts."""
        share = min(1.0, num_used / self._uniform(layer, num_tokens))
        self._evenness[layer] += _RATE * (share - self._evenness[layer])

    def after(self, layer: int) -> Prediction | None:
        """All experts of the layer that follows in the same pass; None after the last one."""
        if layer + 1 == len(self._num_experts):
            return None
        num_experts = self._num_experts[layer + 1]
        return Prediction(layer + 1, tuple(range(num_experts)), (1.0,) * num_experts)

    def pays(self, layer: int, num_tokens: int, num_missing: int, idle_bytes: float) -> bool:
        """Whether to fetch all that is missing of this layer, which comes next in a pass of so many tokens.

        `idle_bytes`: what the link carries while a layer computes (t B). Never for so few tokens that less
        than one is to be expected for each expert: fetching would push out what single tokens use.
        """
        if num_tokens * self._top_k[layer] < self._num_experts[layer]:
            return False
        used = self._evenness[layer] * self._uniform(layer, num_tokens)
        return num_missing * self._weight_bytes * (1 - used / self._num_experts[layer]) <= idle_bytes

    def _uniform(self, layer: int, num_tokens: int) -> float:
        return expected_distinct(self._num_experts[layer], self._top_k[layer], num_tokens)
