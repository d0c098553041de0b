"""One call of a self-attention layer on tokens made for it: what it tells its pages, and what it gives.

Shape letters: T tokens, Q query heads, H heads of keys and values, D width of keys, V of values, C of the
model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.models.attention import PAGED_ATTENTION, MaskRule, PagedCache, register

_ROWS = ((1, 2), (-30, 3), (1e-3, 7), (1e4, 5), (0.1, 9))
"""Of each token's input: how large it is, and to where it goes from -1, in a sine. Any limit is passed."""
_POSITIONS = (0, 1, 5_000, 100_000, 2_000_000)


@dataclass(frozen=True)
class Told:
    """What came of it."""

    by_room: bool
    """Whether it put keys and values in their places by itself."""

    keys: Tensor
    """(T, H, D)."""
    values: Tensor
    """(T, H, V)."""
    queries: Tensor
    """(T, Q, D)."""
    rule: AttentionRule
    out: Tensor
    """(1, T, C)."""

    def same(self, other: Told) -> bool:
        """To the bit."""
        mine, theirs = self._tensors(), other._tensors()
        return self.rule == other.rule and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.queries, self.out


_MASK = MaskRule(lambda *_: torch.ones((), dtype=torch.bool))


@torch.inference_mode()
def tell(attention: Any, cache_argument: str, heads: int, width: int, value_width: int) -> Told:
    """Call it as its model does, with pages of so many heads. Raises whatever the layer does."""
    register()
    of_token = [size * torch.linspace(-1, end, attention.q_proj.in_features).sin() for size, end in _ROWS]
    angles_TD = torch.linspace(0, 40, len(_ROWS) * width).view(1, len(_ROWS), width)
    pages = _Probe(heads, width, value_width)
    cache = PagedCache(pages)
    config, before = attention.config, attention.config._attn_implementation
    config._attn_implementation = PAGED_ATTENTION
    try:
        out, _ = attention(
            hidden_states=torch.stack(of_token)[None].bfloat16(),
            position_embeddings=(angles_TD.cos().bfloat16(), angles_TD.sin().bfloat16()),
            attention_mask=_MASK,
            position_ids=pages.positions[None],
            paged=cache,
            **{cache_argument: cache},
        )
    finally:
        config._attn_implementation = before
    return Told(pages.asked_for_room, pages.keys, pages.values, pages.queries, pages.rule, out)


class _Probe:
    """Pages that keep what they are told. See AttentionPages."""

    queries: Tensor
    rule: AttentionRule
    asked_for_room = False

    def __init__(self, heads: int, width: int, value_width: int) -> None:
        self.positions = torch.tensor(_POSITIONS)
        self.keys = torch.zeros(len(_ROWS), heads, width, dtype=torch.bfloat16)
        self.values = torch.zeros(len(_ROWS), heads, value_width, dtype=torch.bfloat16)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys.contiguous(), values.contiguous()

    def room(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        self.asked_for_room = True
        return self.keys, self.values, torch.arange(len(_ROWS), dtype=torch.int32)

    def attend(self, layer: int, queries: Tensor, rule: AttentionRule) -> Tensor:
        self.queries, self.rule = queries.contiguous(), rule
        num_tokens, num_heads, _ = queries.shape
        out = torch.linspace(0, 30, num_tokens * num_heads * self.values.shape[2]).sin().bfloat16()
        return out.view(num_tokens, num_heads, -1)

    def write_context(self, layer: int, keys: Tensor, values: Tensor) -> None:
        raise NotImplementedError("this is no cross-attention")

    def attend_context(self, layer: int, queries: Tensor, scale: float) -> Tensor:
        raise NotImplementedError("this is no cross-attention")
