"""The pool as one forward pass sees it: where its tokens go, and attention over what they look at.

Shape letters as in `attend`.
"""

from __future__ import annotations

from torch import Tensor

from pgmoe.attention_rule import AttentionRule, Visible
from pgmoe.kv.attend import attend
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool
from pgmoe.kv.reads import Read, ReadLimits, ReadPlanner, everything


class Pages:
    """Told of each pass before it begins. What to look at is planned once for all layers that see alike."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._token_bytes = max(shape.token_bytes for shape in pool.shapes)
        self._dtype = pool.shapes[0].dtype
        self._reads: dict[Visible, list[Read]] = {}

    def begin(self, packed: PackedTokens) -> None:
        """A pass of these tokens follows."""
        self._packed = packed
        self._planner = ReadPlanner(packed, self._pool.nothing, self._dtype)
        self._reads.clear()

    def end(self) -> None:
        """The pass is over: nothing of it is kept."""
        self._reads.clear()

    @property
    def positions(self) -> Tensor:
        """(T,) of the pass's tokens, each in its own sequence."""
        return self._packed.positions_T

    def write(self, layer: int, keys_THD: Tensor, values_THV: Tensor) -> None:
        """Keep the pass's own tokens."""
        self._pool.layers[layer].write(self._packed.places_T, keys_THD, values_THV)

    def write_context(self, layer: int, keys_LHD: Tensor, values_LHV: Tensor) -> None:
        """Keep what the prompts of an encoder-decoder's new sequences left, one after the other."""
        self._pool.layers[layer].write(self._packed.context_places, keys_LHD, values_LHV)

    def attend(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """Each token over its own sequence -> (T, Q, V). Its own key has to be written before."""
        if rule.visible not in self._reads:
            num_heads, width = queries_TQD.shape[1:]
            kept = rule.expand is None
            limits = ReadLimits(
                token_bytes=self._token_bytes if kept else 2 * num_heads * width * self._itemsize,
                mask_bytes=(1 if rule.bias is None and rule.sinks is None else num_heads) * self._itemsize,
            )
            self._reads[rule.visible] = self._planner.own(rule, limits)
        return attend(queries_TQD, self._pool.layers[layer], self._reads[rule.visible], rule)

    def attend_context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """Each token over the prompt of its sequence -> (T, Q, V)."""
        if everything not in self._reads:
            self._reads[everything] = self._planner.context(ReadLimits(self._token_bytes, self._itemsize))
        rule = AttentionRule(everything, scale)
        return attend(queries_TQD, self._pool.layers[layer], self._reads[everything], rule)

    @property
    def _itemsize(self) -> int:
        return self._dtype.itemsize
