"""The pool as one forward pass sees it: where its tokens go, and attention over what they look at.

Shape letters as in `attend`.
"""

from __future__ import annotations

from torch import Tensor

from pgmoe.kv.attend import Expand, attend
from pgmoe.kv.packed import PackedTokens
from pgmoe.kv.pool import KvPool
from pgmoe.kv.reads import Bias, Read, ReadLimits, ReadPlanner, Visible


class Pages:
    """Told of each pass before it begins. What to look at is planned once for all layers that see alike."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._token_bytes = max(shape.token_bytes for shape in pool.shapes)
        self._dtype = pool.shapes[0].dtype
        self._reads: dict[Visible | None, list[Read]] = {}

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

    def attend(
        self,
        layer: int,
        queries_TQD: Tensor,
        visible: Visible,
        scale: float,
        *,
        sinks_Q: Tensor | None = None,
        bias: Bias | None = None,
        expand: Expand | None = None,
    ) -> Tensor:
        """Each token over its own sequence -> (T, Q, V). Its own key has to be written before.

        Layers that give the same `visible` in a pass share the first one's `bias`, as T5's do. `expand` makes
        keys and values of what was written, where that is compressed.
        """
        if visible not in self._reads:
            num_heads, width = queries_TQD.shape[1:]
            limits = ReadLimits(
                token_bytes=self._token_bytes if expand is None else 2 * num_heads * width * self._itemsize,
                mask_bytes=(1 if bias is None and sinks_Q is None else num_heads) * self._itemsize,
            )
            self._reads[visible] = self._planner.own(visible, limits, bias, sinks_Q is not None)
        return attend(queries_TQD, self._pool.layers[layer], self._reads[visible], scale, sinks_Q, expand)

    def attend_context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        """Each token over the prompt of its sequence -> (T, Q, V)."""
        if None not in self._reads:
            self._reads[None] = self._planner.context(ReadLimits(self._token_bytes, self._itemsize))
        return attend(queries_TQD, self._pool.layers[layer], self._reads[None], scale)

    @property
    def _itemsize(self) -> int:
        return self._dtype.itemsize
