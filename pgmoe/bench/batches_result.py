"""Speed against the number of sequences that decode together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgmoe.bench.compare import Series
from pgmoe.bench.result import Record
from pgmoe.bench.statistics import Spread, paired_ratio

RESIDENT = "resident"
"""Name of the line with all experts in memory."""


@dataclass(frozen=True)
class BatchPoint:
    """All lines at one batch size, measured in the same rounds."""

    batch: int
    """Sequences."""
    series: tuple[Series, ...]
    """The line with all experts resident, then one for each gating."""

    def of(self, line: str) -> Series:
        """The series of a line."""
        return next(s for s in self.series if s.name == line)

    def speeds(self, line: str) -> Sequence[float]:
        """Tokens/s of all sequences together, by round."""
        return [self.batch * speed for speed in self.of(line).speeds]

    def ratio(self, line: str, baseline: str) -> Spread:
        """How many times as fast, round by round."""
        return paired_ratio(self.speeds(line), self.speeds(baseline))


@dataclass(frozen=True)
class BatchesResult(Record):
    """One point for each batch size."""

    share: float
    """Per cent of the experts in memory, of all lines but the resident one."""
    batches: tuple[BatchPoint, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The resident one first."""
        return tuple(series.name for series in self.batches[0].series)
