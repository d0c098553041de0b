"""The pool as one forward pass sees it: where its tokens go, and attention over what they look at.

Shape letters: T tokens of the pass, L tokens of prompts, H heads of keys and values, Q query heads, D width
of keys, V of values.
"""

from __future__ import annotations

from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.attention import Attention
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool


class Pages:
    """Told of each pass before it begins."""

    def __init__(self, pool: KvPool, attention: Attention) -> None:
        """`attention`: over this pool."""
        self._pool = pool
        self._attention = attention

    def begin(self, packed: PackedTokens) -> None:
        """A pass of these tokens follows."""
        self._packed = packed
        self._attention.begin(packed)

    def end(self) -> None:
        """The pass is over: nothing of it is kept."""
        self._attention.end()

    @property
    def positions(self) -> Tensor:
        """(T,) of the pass's tokens, each in its own sequence."""
        return self._packed.positions_T

    def write(self, layer: int, keys_THD: Tensor, values_THV: Tensor) -> None:
        """Keep the pass's own tokens."""
        self._pool.layers[layer].write(self._packed.places_T, keys_THD, values_THV)

    def room(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where the pass's own tokens go: the layer's keys (P, H, D), values (P, H, V), rows (T,) int32."""
        pages = self._pool.layers[layer]
        return pages.keys, pages.values, self._packed.rows_T

    def write_context(self, layer: int, keys_LHD: Tensor, values_LHV: Tensor) -> None:
        """Keep what the prompts of an encoder-decoder's new sequences left, one after the other."""
        self._pool.layers[layer].write(self._packed.context_places, keys_LHD, values_LHV)

    def attend(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        """Each token over its own sequence -> (T, Q, V). Its own key has to be written before."""
        return self._attention.own(layer, queries_TQD, rule)

    def attend_context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """Each token over the prompt of its sequence -> (T, Q, V)."""
        return self._attention.context(layer, queries_TQD, scale)
