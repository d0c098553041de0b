"""Which run of positions each token of a pass looks at.

Shape letters: T tokens of the pass, N some of them, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmoe.attention_rule import Visible
from pgmoe.kv.packed import PackedTokens

CHECKED_AT_ONCE = 2**21
"""Pairs of tokens and positions of which it is asked who sees whom."""


@dataclass(frozen=True)
class Spans:
    """Of each token the first position that it looks at, and the end of those: it sees all between."""

    both: Tensor
    """(T, 2) int32, on the device."""
    firsts: Sequence[int]
    """The same on the host."""
    ends: Sequence[int]

    @classmethod
    def own(cls, packed: PackedTokens, visible: Visible) -> Spans | None:
        """In each token's own sequence; None if one sees something else than a single run.

        The host waits for the device once.
        """
        spans_T2 = asked(packed, visible)
        firsts, ends = spans_T2.T.tolist()
        return None if min(firsts) < 0 else cls(spans_T2, firsts, ends)

    @classmethod
    def context(cls, packed: PackedTokens) -> Spans:
        """In its prompt, all of which it sees."""
        ends_T = _of_each_token(packed, [segment.num_context for segment in packed.segments])
        spans_T2 = torch.stack([torch.zeros_like(ends_T), ends_T], dim=1).int()
        firsts, ends = spans_T2.T.tolist()
        return cls(spans_T2, firsts, ends)


def asked(packed: PackedTokens, visible: Visible) -> Tensor:
    """(T, 2) int32 of each token in its own sequence: first and end of what it sees; -1 where that is no run.

    Every pair is asked, so nothing is assumed of the rule; on the tokens' device. All sequences at once,
    unless a long one would have too many asked of the others' tokens.
    """
    ends_T = _of_each_token(packed, [segment.end for segment in packed.segments])
    sizes, lengths = [packed.num_tokens], [max(segment.end for segment in packed.segments)]
    if sizes[0] * lengths[0] > CHECKED_AT_ONCE:
        sizes = [segment.num_tokens for segment in packed.segments]
        lengths = [segment.end for segment in packed.segments]
    parts = zip(torch.split(packed.positions_T, sizes), torch.split(ends_T, sizes), lengths, strict=True)
    return torch.cat([_asked_at_once(visible, *part) for part in parts])


def _asked_at_once(visible: Visible, positions_N: Tensor, ends_N: Tensor, length: int) -> Tensor:
    """(N, 2) int32, of tokens that are asked of positions below `length`."""
    positions_L = torch.arange(length, device=positions_N.device)
    num_rows = max(1, CHECKED_AT_ONCE // length)
    rows = (torch.split(numbers_N[:, None], num_rows) for numbers_N in (positions_N, ends_N))
    return torch.cat(
        [_runs(visible, at_N1, ends_N1, positions_L) for at_N1, ends_N1 in zip(*rows, strict=True)]
    )


def _runs(visible: Visible, positions_N1: Tensor, ends_N1: Tensor, positions_L: Tensor) -> Tensor:
    """(N, 2) int32: first and end; -1 for who does not see a single run."""
    there_NL = visible(positions_N1, positions_L) & (positions_L < ends_N1)
    first_N1 = there_NL.byte().argmax(dim=1, keepdim=True)
    end_N1 = first_N1 + there_NL.sum(dim=1, keepdim=True)
    run_NL = (positions_L >= first_N1) & (positions_L < end_N1)
    whole_N1 = (there_NL == run_NL).all(dim=1, keepdim=True) & (end_N1 > first_N1)
    return torch.where(whole_N1, torch.cat([first_N1, end_N1], dim=1), -1).int()


def _of_each_token(packed: PackedTokens, of_segments: Sequence[int]) -> Tensor:
    numbers = [n for s, n in zip(packed.segments, of_segments, strict=True) for _ in range(s.num_tokens)]
    return torch.tensor(numbers, device=packed.device)
