"""The seam between transformers' models and our attention: layers hand their keys to the cache that the model
is given, and their queries to a function registered here, which asks the pages that came with the call.

Shape letters: B rows, S tokens of a row, T = B * S tokens, H heads, Q query heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, EncoderDecoderCache

from pgmoe.attention_rule import AttentionRule, Bias

PAGED_ATTENTION = "pgmoe"


class AttentionPages(Protocol):
    """Where keys and values are kept, for the tokens of the pass under way."""

    @property
    def positions(self) -> Tensor:
        """(T,) of each token in its sequence."""
        ...

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep (T, H, D) keys and values of the pass's own tokens."""
        ...

    def room(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where `write` keeps them: in (P, H, D) and (P, H, V), each token in its row, (T,) int32."""
        ...

    def write_context(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep (L, H, D) keys and values of new prompts, for cross-attention."""
        ...

    def attend(self, layer: int, queries: Tensor, rule: AttentionRule) -> Tensor:
        """(T, Q, D) over each token's own sequence -> (T, Q, value width)."""
        ...

    def attend_context(self, layer: int, queries: Tensor, scale: float) -> Tensor:
        """(T, Q, D) over the prompt of each token's sequence -> (T, Q, value width)."""
        ...


class NotPaged(Exception):
    """A layer asks for what pages do not have: its model keeps a cache of another kind."""


class PagedCache:
    """The cache that a model is given: it keeps keys and values in pages, and has nothing else.

    A model that asks it for more, such as a state that is not a token's, fails with AttributeError.
    """

    is_compileable = False
    is_sliding = is_linear = is_dummy = ()
    """It has no layers of a kind to make masks for."""

    def __init__(self, pages: AttentionPages) -> None:
        self.pages = pages
        self.written: int | None = None
        """The layer whose keys came last; None once it has attended."""

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keep (B, H, S, D) of the pass's tokens; returns them as they are."""
        self.pages.write(layer, _tokens_first(keys), _tokens_first(values))
        self.written = layer
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """0: each token's position is told apart from it."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """0, see get_seq_length."""
        return 0

    def get_mask_sizes(self, num_tokens: int, layer: int) -> tuple[int, int]:
        """Those of a mask that nobody makes."""
        return num_tokens, 0


class _ContextLayer:
    """What stands for one layer's keys of the prompts once they are in the pages."""

    def __init__(self, like: Tensor) -> None:
        self.keys = self.values = like


class _ContextCache:
    """Takes new prompts' keys and values for cross-attention."""

    def __init__(self, pages: AttentionPages, layers: list[_ContextLayer]) -> None:
        self._pages = pages
        self.layers = layers

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keep (1, H, L, D) of all new prompts, one after the other; returns them as they are."""
        self._pages.write_context(layer, _tokens_first(keys), _tokens_first(values))
        return keys, values


class PagedPair(EncoderDecoderCache):
    """The same for an encoder-decoder: its decoder's own tokens, and its prompts."""

    def __init__(self, pages: AttentionPages, num_layers: int, *, new_prompts: bool) -> None:
        """`new_prompts`: whether the pass brings encoder outputs that are not in the pages yet."""
        nothing = torch.empty(1, 1, 1, 1)
        self.self_attention_cache = PagedCache(pages)  # type: ignore[assignment]
        self.cross_attention_cache = _ContextCache(pages, [_ContextLayer(nothing)] * num_layers)  # type: ignore[assignment]
        self.is_updated = dict.fromkeys(range(num_layers), not new_prompts)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0, see PagedCache."""
        return 0


class MaskRule:
    """What stands for a mask: who sees whom, by positions."""

    def __init__(self, visible: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        self._visible = visible

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See Visible."""
        zero = torch.zeros((), dtype=torch.int64)
        return self._visible(zero, zero, queries, keys)


def paged_mask(*_: object, mask_function: Callable[..., Tensor], **__: object) -> Any:
    """What transformers calls to make a mask."""
    return MaskRule(mask_function)


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    *,
    scaling: float | None = None,
    paged: PagedCache | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention: query (B, Q, S, D) to (B, S, Q, value width).

    Raises NotPaged where the model wants what is not done here.
    """
    if paged is None or softcap is not None:
        raise NotPaged(f"{type(module).__name__}: {'softcap' if softcap else 'no pages'}")
    num_rows, num_tokens = query.shape[0], query.shape[2]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    layer, queries = int(module.layer_idx), _tokens_first(query)
    written, paged.written = paged.written, None
    if written is None:  # the layer has kept nothing, so what it looks at is the prompt
        out = paged.pages.attend_context(layer, queries, scale)
    elif written != layer or not isinstance(attention_mask, MaskRule):
        raise NotPaged(f"{type(module).__name__}: no keys of layer {layer}, or a mask that is no rule")
    else:
        bias = None if position_bias is None else relative_bias(module)
        rule = AttentionRule(attention_mask, scale, s_aux, bias, getattr(module, "expand_kv", None))
        out = paged.pages.attend(layer, queries, rule)
    return out.view(num_rows, num_tokens, *out.shape[1:]), None


def relative_bias(module: Any) -> Bias | None:
    """T5's bias by distance, of the layer that has the table; None for those that share it."""
    if not module.has_relative_attention_bias:
        return None

    def bias(queries_BN: Tensor, keys_BL: Tensor) -> Tensor:
        bucket_BNL = module._relative_position_bucket(
            keys_BL[:, None] - queries_BN[:, :, None],
            bidirectional=False,
            num_buckets=module.relative_attention_num_buckets,
            max_distance=module.relative_attention_max_distance,
        )
        added: Tensor = module.relative_attention_bias(bucket_BNL)
        return added.permute(0, 3, 1, 2)

    return bias


def register() -> None:
    """Make this attention known to transformers. Doing it again changes nothing."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention)
    AttentionMaskInterface.register(PAGED_ATTENTION, paged_mask)


def _tokens_first(heads_BHSD: Tensor) -> Tensor:
    """(B, H, S, D) to (T, H, D)."""
    return heads_BHSD.transpose(1, 2).flatten(0, 1)
