"""What running requests takes of memory beside the weights: pure arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pgmoe.engine.kv_size import KvSize
from pgmoe.errors import BudgetTooSmall
from pgmoe.kv.pool import LayerShape
from pgmoe.units import format_bytes, parse_bytes

USUAL_TOKENS = 2048
"""Of a sequence, as long as `kv_memory: auto` makes room for if it can."""
LEAST_TOKENS = 256
"""Of the one sequence that there is room for at least."""


@dataclass(frozen=True)
class RunningBytes:
    """Memory of what runs."""

    kv_bytes: int
    """Of the pool of keys and values that all running sequences share."""
    workspace_bytes: int
    """Of the one step that runs at a time, where its sequences are the longest."""
    longest: int
    """Tokens of the longest sequence: one that has the whole of `kv_bytes`."""

    @property
    def total_bytes(self) -> int:
        """Of both."""
        return self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True)
class Needs:
    """What a model takes to run, and how much of it is wanted."""

    kv: KvSize
    workspace: Callable[[int], int]
    """Bytes that a step of a sequence of so many tokens holds at most; never falls with its length."""
    max_running: int
    max_model_len: int
    prefill_chunk: int
    """Most prompt tokens of a step, which `workspace` has room for."""
    shapes: tuple[LayerShape, ...] | None = None
    """What each layer keeps of a token in a pool for all; None where each sequence has a cache of its own."""

    def levels(self) -> Iterator[RunningBytes]:
        """What might be made room for, half each time: `max_running` sequences of USUAL_TOKENS first, then
        fewer, then one that is shorter, LEAST_TOKENS last; a shorter `max_model_len` stands for either.
        """
        sequences, tokens = self.max_running, min(self.max_model_len, USUAL_TOKENS)
        least = min(self.max_model_len, LEAST_TOKENS)
        yield self._running(sequences * self.kv.sequence_bytes(tokens))
        while sequences > 1 or tokens > least:
            if sequences > 1:
                sequences //= 2
            else:
                tokens = max(least, tokens // 2)
            yield self._running(sequences * self.kv.sequence_bytes(tokens))

    def unlimited(self) -> RunningBytes:
        """Where no budget says how much: the usual use, and no less than the longest sequence takes."""
        tokens = min(self.max_model_len, USUAL_TOKENS)
        usual = self.max_running * self.kv.sequence_bytes(tokens)
        kv_bytes = max(usual, self.kv.sequence_bytes(self.max_model_len))
        return RunningBytes(kv_bytes, self.workspace(tokens), self.max_model_len)

    def within(self, kv_memory: str | int) -> RunningBytes:
        """With caches of so many bytes, but no more than all can use.

        Raises BudgetTooSmall if that is less than one short sequence takes, ConfigError if it is malformed.
        """
        wanted = parse_bytes(kv_memory)
        least = self.kv.sequence_bytes(min(self.max_model_len, LEAST_TOKENS))
        if wanted < least:
            raise BudgetTooSmall(
                f"kv_memory {kv_memory!r} is less than the {format_bytes(least)} ({least} bytes) of one "
                f"sequence of {min(self.max_model_len, LEAST_TOKENS)} tokens; give at least that, or auto",
                minimum_bytes=least,
            )
        return self._running(min(wanted, self.max_running * self.kv.sequence_bytes(self.max_model_len)))

    def _running(self, kv_bytes: int) -> RunningBytes:
        longest = self.kv.tokens_in(kv_bytes, self.max_model_len)
        return RunningBytes(kv_bytes, self.workspace(longest), longest)
