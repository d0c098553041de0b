"""What a step cost each of the answers that it was about."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager

from pgmoe.engine.sequence import Sequence
from pgmoe.experts.ledger import Ledger, Uses
from pgmoe.metrics.stats import ExpertStats


class Billing:
    """Reads the experts' ledger and counters before and after a step.

    Hits and misses are an answer's own: the experts that its tokens used. Bytes that moved and time that
    compute waited meanwhile are shared by its misses among all of the step; evenly where nobody missed any,
    since they were then fetched for all.
    """

    def __init__(self, ledger: Ledger, stats: ExpertStats) -> None:
        self._ledger = ledger
        self._stats = stats

    @contextmanager
    def of(self, sequences: Many[Sequence]) -> Iterator[None]:
        """What runs inside is about these."""
        num_bytes, stall_s = self._stats.num_bytes, self._stats.stall_s
        self._ledger.take()
        try:
            yield
        finally:
            self._bill(sequences, self._stats.num_bytes - num_bytes, self._stats.stall_s - stall_s)

    def _bill(self, sequences: Many[Sequence], num_bytes: int, stall_s: float) -> None:
        uses = self._ledger.take()
        num_misses = sum(found.misses for found in uses.values())
        for sequence in sequences:
            found = uses.get(sequence.key, Uses())
            share = found.misses / num_misses if num_misses else 1 / len(sequences)
            sequence.hits += found.hits
            sequence.misses += found.misses
            sequence.expert_bytes += share * num_bytes
            sequence.stall_s += share * stall_s
