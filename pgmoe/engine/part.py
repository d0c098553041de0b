"""One sequence's part of a step, as the model gets it; and what a runner of steps does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tokens of one sequence to compute."""

    sequence_id: str
    token_ids: tuple[int, ...]
    """At positions `start`, `start` + 1, …"""
    start: int
    """Tokens computed before."""
    blocks: tuple[int, ...] = ()
    """Of the KV pool, first tokens first; they have room for these."""
    context_blocks: tuple[int, ...] = ()
    """For what an encoder-decoder's prompt leaves."""
    prompt_token_ids: tuple[int, ...] = ()
    """An encoder-decoder's prompt; empty for others."""
    all_logits: bool = False
    """Whether those of every token are wanted, not of the last alone."""


BeginPass = Callable[[Sequence[str], Sequence[Sequence[int]]], None]
"""Told of each forward pass before it: whose tokens, and which ones of each, in their order."""
Outcome = Tensor | Exception
"""Logits (1, V) of a part's last token, or (T, V) of all; or what went wrong with it."""


class Runner(Protocol):
    """Runs steps of the model."""

    def run(self, parts: Sequence[Part]) -> list[Outcome]:
        """Compute these; one outcome for each. A part that fails changes nothing that others rely on.

        Raises DeviceLost.
        """
        ...

    def forget(self, sequence_id: str) -> None:
        """Nothing more will be computed of it, or all of it anew."""
        ...
